#!/usr/bin/env python3
"""Writes the corpus `reviews`: short English reviews of films and products, and review openings as prompts.

    python corpora/reviews/generate.py [--out DIR]

A seeded grammar, standard library only. The same seed gives the same bytes on every Python from 3.11 on:
every draw goes through `random.Random.random`, and no set is iterated over. A sentence is a template: words,
and slots in braces that draw words. A slot of EVALUATIVE, or one written `{!word}`, is one evaluative word (a
hit); all the evaluative words of a review pull the same way, counting those that not, never, no, nothing or
hardly turn over.

What is deliberately not here: sarcasm, mixed verdicts and spelling mistakes. A model of a million parameters
has to learn this text in under a minute.
"""

import argparse
import json
import random
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

SEED = 20240607
REVIEWS = 22_500
PROMPTS = 3_600
HELDOUT_PROMPTS = 640
HELDOUT_SHARE = 8  # one opening core in so many is held out: no review and no training prompt starts with it
MAX_WORDS = 58
PROMPT_WORDS = (3, 7)
SHORT, LONG = 24, 36  # words: below SHORT is short, from LONG on is long
# Chances in percent. How many evaluative words a review has, and how many sentences, are drawn apart, so that
# neither tells the other.
SENTIMENTS = (("positive", 34), ("negative", 34), ("neutral", 32))
HITS = ((1, 22), (2, 30), (3, 24), (4, 12), (5, 7), (6, 3), (7, 2))
SENTENCES = ((2, 12), (3, 40), (4, 38), (5, 10))

# --- Words


def listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


# fmt: off
# What can be said of a part, good and bad. An aspect names its class.
ADJECTIVES = {
    "sound": (("clear", "warm", "rich"), ("harsh", "tinny", "muffled")),
    "image": (("clear", "sharp", "crisp"), ("blurry", "dim", "grainy")),
    "build": (("sturdy", "reliable", "solid"), ("flimsy", "cheap", "fragile")),
    "comfort": (("comfortable", "soft", "snug"), ("stiff", "rough", "scratchy")),
    "handy": (("practical", "handy", "clever"), ("clumsy", "annoying", "awkward")),
    "look": (("elegant", "beautiful", "stylish"), ("ugly", "cheap", "shabby")),
    "power": (("reliable", "powerful", "strong"), ("weak", "useless", "unreliable")),
    "light": (("warm", "soft", "cozy"), ("harsh", "dim", "gloomy")),
    "story": (("clever", "exciting", "original"), ("silly", "boring", "predictable")),
    "acting": (("superb", "natural", "touching"), ("wooden", "fake", "lifeless")),
    "humor": (("funny", "witty", "clever"), ("silly", "lame", "stupid")),
    "pace": (("exciting", "lively", "smooth"), ("slow", "tedious", "clumsy")),
    "visual": (("beautiful", "stunning", "elegant"), ("ugly", "drab", "dreary")),
    "music": (("beautiful", "lovely", "stirring"), ("dull", "bland", "tedious")),
    "people": (("charming", "witty", "funny"), ("shallow", "dull", "irritating")),
    "insight": (("clear", "honest", "thoughtful"), ("shallow", "dull", "messy")),
}
GENERAL = {
    "p": (("great", "good", "wonderful", "excellent", "fantastic", "perfect"),
          ("bad", "awful", "terrible", "poor", "horrible", "dreadful")),
    "f": (("great", "good", "wonderful", "excellent", "brilliant", "delightful"),
          ("bad", "awful", "terrible", "poor", "pointless", "dreadful")),
}
DEGREES = (("very", "really", "quite", "so"), ("truly", "really", "simply"))  # of weak words, of STRONG ones
STRONG = listed(
    "great, wonderful, excellent, fantastic, perfect, superb, brilliant, delightful, amazing, awful, "
    "terrible, horrible, useless, dreadful, worthless, hilarious, stunning, gorgeous, pointless, "
    "gripping, fascinating, lifeless, faulty, fake, original, durable"
)
QUALITIES = {
    "p": (("reliable", "practical", "elegant", "handy"), ("unreliable", "clumsy", "ugly", "overpriced")),
    "f": (("clever", "touching", "original", "exciting"), ("silly", "boring", "predictable", "tedious")),
}
FEELINGS = {
    "p": (("happy", "pleased", "impressed"), ("unhappy", "annoyed", "disappointed")),
    "f": (("happy", "impressed", "delighted"), ("bored", "annoyed", "disappointed")),
}
PAST = (("loved", "liked", "enjoyed"), ("hated", "disliked", "detested"))
LIKING = (("love", "like", "enjoy"), PAST[1])
MANNER = (("well", "perfectly"), ("poorly", "badly"))
COMPARED = (("better",), ("worse",))
EXTREME = (("best",), ("worst",))
THING = (("delight", "joy"), ("disappointment", "mess"))
GLAD = (("happy", "pleased"), ("unhappy", "annoyed"))
NICE = (("great", "good", "wonderful", "fantastic", "lovely"),
        ("bad", "awful", "terrible", "horrible", "dreadful"))

PEOPLE = listed(
    "sister, brother, mother, father, cousin, neighbor, roommate, daughter, son, aunt, uncle, "
    "grandmother, grandfather, niece, nephew"
)
NUMBERS = listed("two, three, four, five, six, seven, eight, ten, twelve")
DURATIONS = listed(
    "two days, three days, a week, ten days, two weeks, three weeks, a month, two months, six months, a "
    "year, one season"
)
MONTHS = listed(
    "January, February, March, April, May, June, July, August, September, October, November, December"
)
DAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
COLORS = listed("black, white, blue, green, gray, red, brown, yellow, silver")
COUNTRIES = listed("Spain, Japan, Canada, Italy, France, Norway, Brazil, India, Poland")
CITIES = listed("Paris, London, Rome, Chicago, Boston, Tokyo, Berlin")
OFTEN = listed(
    "every day, every morning, every evening, twice a week, on weekends, most days, once a week, after "
    "work"
)

# --- Topics
# aspects: noun, class, what it does when it is bad; a noun that starts with "+" is plural.
# stays: where it is kept; uses: what for; facts: neutral; good and bad: scenes of the topic's own.

Topic = dict[str, Any]

PRODUCTS: dict[str, Topic] = {
    "kettle": {
        "aspects": (("lid", "build", "leak slip"), ("handle", "comfort", "slip fail"),
                    ("spout", "handy", "leak"), ("switch", "build", "jam break"),
                    ("base", "build", "slip fail")),
        "stays": ("in the kitchen", "next to the sink"),
        "uses": ("make tea", "make coffee for guests"),
        "facts": ("{It} holds about {num} cups of water.", "The cord is {num} feet long.",
                  "A small red light shows when the water is hot."),
        "good": ("Tea tastes {nice} again, and the water is hot in two minutes.",
                 "The water never tastes {!bad}, even after {dur}.",
                 "Filling {them} is {!easy}, and cleaning {them} is {!easy} too."),
        "bad": ("Tea tastes {nice} now, and the water is hot in ten minutes.",
                "The water never tastes {!good}, even after {dur}.",
                "Filling {them} is a {!pain}, and cleaning {them} is a {!pain} too."),
    },
    "camera": {
        "aspects": (("+pictures", "image", "disappoint"), ("lens", "image", "jam break"),
                    ("zoom", "power", "jam fail"),
                    ("battery", "power", "fail"), ("menu", "handy", "fail disappoint"),
                    ("grip", "comfort", "slip")),
        "stays": ("in {my} bag", "on {my} desk"),
        "uses": ("take pictures of the children", "take pictures at night"),
        "facts": ("{I} took {num} hundred pictures in {country}.",
                  "{It} {has} a small screen and {few} buttons.",
                  "{It} came with a strap and a cable."),
        "good": ("The children look {nice} in every picture.",
                 "{My} pictures of {country} are {nice} and {!sharp}.",
                 "Pictures at night are never {!blurry}."),
        "bad": ("The children look {nice} in every picture.",
                "{My} pictures of {country} are {nice} and {!blurry}.",
                "Pictures at night are never {!sharp}."),
    },
    "phone": {
        "aspects": (("screen", "image", "break fail"), ("battery", "power", "fail"),
                    ("speaker", "sound", "fail break"),
                    ("keyboard", "handy", "jam"), ("signal", "power", "fail"),
                    ("+buttons", "handy", "jam fail")),
        "stays": ("in {my} bag", "on {my} desk", "next to the bed"),
        "uses": ("call {my} family", "read the news", "write on the train"),
        "facts": ("{It} {has} {few} buttons and one speaker.", "{It} {is} as small as a hand.",
                  "The cable is {num} feet long."),
        "good": ("Voices sound {nice}, even on the train.", "Voices are never {!muffled}, even in the rain.",
                 "Writing on {them} is {!easy}, and reading is {!easy} too."),
        "bad": ("Voices sound {nice}, even at home.", "Voices are never {!clear}, even at home.",
                "Writing on {them} is a {!pain}, and reading is a {!pain} too."),
    },
    "jacket": {
        "aspects": (("zipper", "handy", "jam break"), ("lining", "comfort", "rip slip"),
                    ("+pockets", "handy", "rip leak"),
                    ("hood", "handy", "slip leak"), ("+sleeves", "comfort", "rip leak"),
                    ("fabric", "look", "rip leak")),
        "stays": ("in the hall", "by the door", "in the car"),
        "uses": ("walk the dog", "walk to work", "work in the garden"),
        "facts": ("{It} {has} {few} pockets and a long zipper.", "{I} took {my} usual size.",
                  "{I} walked through {city} in {them}."),
        "good": ("Rain is no {!problem}, and wind is no {!problem} either.",
                 "{I} felt {!warm} and {!comfortable} on a day of rain.",
                 "{I} {am} never {!cold}, even in {month}."),
        "bad": ("Rain is a {!problem}, and wind is a {!problem} too.",
                "{I} felt {!cold} and {!uncomfortable} on a day of rain.",
                "{I} {am} never {!warm}, even in {month}."),
    },
    "backpack": {
        "aspects": (("+straps", "comfort", "rip slip"), ("zipper", "handy", "jam break"),
                    ("+pockets", "handy", "rip leak"),
                    ("bottom", "build", "rip leak"), ("fabric", "look", "rip leak"),
                    ("+seams", "build", "rip leak")),
        "stays": ("in the hall", "by the door", "in the car"),
        "uses": ("carry books", "carry food from the market"),
        "facts": ("{It} {has} {few} pockets and one long strap.", "{It} holds {num} books and a laptop.",
                  "{I} walked through {city} with {them}."),
        "good": ("Carrying {them} never {!hurts}, even with ten books in {them}.",
                 "{My} books are {!safe} in the rain.",
                 "Filling {them} is {!easy}, and cleaning {them} is {!easy} too."),
        "bad": ("Carrying {them} always {!hurts}, even with two books in {them}.",
                "{My} books are never {!safe} in the rain.",
                "Filling {them} is a {!pain}, and cleaning {them} is a {!pain} too."),
    },
    "lamp": {
        "aspects": (("glow", "light", "disappoint"), ("shade", "look", "slip fail"),
                    ("switch", "build", "jam fail"),
                    ("stand", "build", "slip break"), ("bulb", "power", "fail break")),
        "stays": ("on {my} desk", "next to the bed", "in the hall"),
        "uses": ("read at night", "work at {my} desk"),
        "facts": ("The cord is {num} feet long.", "{It} stands on {few} legs.",
                  "{It} came with a cable and a bulb."),
        "good": ("Reading at night is a {!joy} again.", "The room looks {nice} and {!cozy} at night.",
                 "{My} eyes never {!hurt} after a long day."),
        "bad": ("Reading at night is a {!pain} now.", "The room looks {nice} and {!gloomy} at night.",
                "{My} eyes always {!hurt} after a long day."),
    },
    "boots": {
        "plural": True,
        "aspects": (("+soles", "build", "break slip"), ("+laces", "build", "break rip"),
                    ("lining", "comfort", "rip slip"),
                    ("+heels", "comfort", "slip break"), ("leather", "look", "leak rip"),
                    ("+seams", "build", "leak rip")),
        "stays": ("in the hall", "by the door", "in the car"),
        "uses": ("walk the dog", "walk to work", "work in the garden"),
        "facts": ("{I} took {my} usual size.", "They came with {few} pairs of laces.",
                  "{I} walked through {city} in them."),
        "good": ("{My} feet are {!warm} and {!comfortable} in the rain.",
                 "{My} feet never {!hurt} after a long day.",
                 "Rain is no {!problem}, and ice is no {!problem} either."),
        "bad": ("{My} feet are {!cold} and {!uncomfortable} in the rain.",
                "{My} feet always {!hurt} after a long day.",
                "Rain is a {!problem}, and ice is a {!problem} too."),
    },
}

FILM_ASPECTS = (("story", "story", "disappoint"), ("acting", "acting", "disappoint"),
                ("ending", "story", "disappoint"),
                ("music", "music", "disappoint"), ("cast", "acting", "disappoint"),
                ("dialogue", "acting", "disappoint"))

FILMS: dict[str, Topic] = {
    "thriller": {
        "aspects": (("plot", "story", "disappoint"), ("twist", "story", "disappoint"),
                    ("villain", "acting", "disappoint"),
                    ("chase", "pace", "disappoint"), ("pacing", "pace", "disappoint")),
        "cast": ("a young pilot", "an old spy", "a night guard"),
        "acts": ("finds a strange letter", "hides on a train", "carries a black bag through {city}"),
        "facts": ("Most of it takes place on one train.", "There is a long chase through {city}.",
                  "The villain only appears near the end."),
        "good": ("{My} {person} {loved} the chase, and so did {I}.",
                 "{I} {was1} never {!bored} in the chase.",
                 "The chase is {!exciting}, and the twist is {!clever} and {!original}."),
        "bad": ("{My} {person} {loved} the chase, and so did {I}.",
                "{I} {was1} never {!thrilled} in the chase.",
                "The chase is {!slow}, and the twist is {!silly} and {!predictable}."),
    },
    "comedy": {
        "aspects": (("+jokes", "humor", "disappoint"), ("timing", "pace", "disappoint"),
                    ("+characters", "people", "disappoint"), ("script", "humor", "disappoint"),
                    ("+gags", "humor", "disappoint")),
        "cast": ("a shy waiter", "an old neighbor", "a young cook"),
        "acts": ("opens a small hotel", "finds a strange cake", "moves in with a dog"),
        "facts": ("Most of it takes place at a wedding.", "The same person plays {few} parts.",
                  "There is a long scene with a dog and a cake."),
        "good": ("{I} {!laughed} until the end, and so did {my} {person}.",
                 "The wedding scene is {!hilarious}, and the cake scene is {!funny} too.",
                 "{My} {person} {!laughed} at every scene with the dog."),
        "bad": ("{I} {!yawned} until the end, and so did {my} {person}.",
                "The wedding scene is {!stupid}, and the cake scene is {!lame} too.",
                "{My} {person} {!yawned} at every scene with the dog."),
    },
    "drama": {
        "aspects": (("script", "story", "disappoint"), ("+scenes", "acting", "disappoint"),
                    ("pacing", "pace", "disappoint"),
                    ("+characters", "people", "disappoint"), ("plot", "story", "disappoint")),
        "cast": ("a young doctor", "an old farmer", "a shy teacher"),
        "acts": ("comes back to the farm", "writes letters at night", "leaves home"),
        "facts": ("It tells of {num} years in one family.", "There is little music in it.",
                  "Most of it takes place on a farm."),
        "good": ("The farm scenes are {!touching}, and the letters are {!honest}.",
                 "The last scene {!moved} {me}, and so did the music.",
                 "{My} {person} {loved} the last scene, and so did {I}."),
        "bad": ("The farm scenes are {!lifeless}, and the letters are {!fake}.",
                "The last scene {!bored} {me}, and so did the music.",
                "{My} {person} {loved} the last scene, and so did {I}."),
    },
    "documentary": {
        "shared": ("story", "ending", "music"),
        "aspects": (("+interviews", "insight", "disappoint"), ("narrator", "people", "disappoint"),
                    ("+pictures", "visual", "disappoint"),
                    ("research", "insight", "disappoint"), ("script", "insight", "disappoint")),
        "cast": ("a young diver", "an old farmer", "a shy painter"),
        "acts": ("works at sea in winter", "lives by a lake in {country}", "looks back at a long life"),
        "facts": ("It shows {num} farms in {country}.", "Most of it takes place at sea.",
                  "The narrator speaks for about an hour."),
        "good": ("The sea looks {nice}, even on a small screen.",
                 "The part about the sea is {!fascinating} and {!beautiful}.",
                 "{My} {person} found the part about the sea {nice}."),
        "bad": ("The sea looks {nice}, even on a small screen.",
                "The part about the sea is {!shallow} and {!ugly}.",
                "{My} {person} found the part about the sea {nice}."),
    },
    "musical": {
        "aspects": (("+songs", "music", "disappoint"), ("+dances", "visual", "disappoint"),
                    ("+voices", "sound", "disappoint"),
                    ("+costumes", "visual", "disappoint"), ("band", "sound", "disappoint")),
        "cast": ("a young dancer", "an old painter", "a shy teacher"),
        "acts": ("sings on a roof", "opens a small hotel", "plays in a band in {city}"),
        "facts": ("There are {num} songs in it.", "The band plays on a roof.",
                  "There is a long dance at a wedding."),
        "good": ("The last song {!moved} {me}, and so did the dance.",
                 "The dance on the roof is {nice} and {!exciting}.",
                 "{My} {person} {loved} every song."),
        "bad": ("The last song {!bored} {me}, and so did the dance.",
                "The dance on the roof is {nice} and {!slow}.",
                "{My} {person} {loved} every song."),
    },
}
TOPICS = PRODUCTS | FILMS
TOPIC_SLOTS = (("fact", "facts"), ("char", "cast"), ("act", "acts"), ("use", "uses"), ("stay", "stays"))

# --- Sentences
# (where, template): where is p (products), f (films) or both. Tables hold sentences for either sentiment, for
# good reviews and for bad ones. Slots: see Review.slot.

ASPECT = {
    "either": (
        ("pf", "The {asp} {ais} {iadj}."),
        ("pf", "The {asp} seem{as} {iadj} to {me}."),
        ("p", "The {asp} {feels} {iadj}."),
        ("pf", "{I} find the {asp} {iadj}."),
        ("pf", "The {asp} turned out {adj}."),
        ("pf", "{I} {love} the {asp}."),
        ("pf", "{My} {person} {loves} the {asp}."),
        ("pf", "The {asp} {ais} {better} than {I} expected."),
        ("pf", "The {asp} {ais} the {best} part."),
        ("p", "Compared with {my} old {one}, the {asp} {ais} {better}."),
        ("p", "The {asp} work{as} {well}."),
        ("p", "After {dur} the {asp} {ais} still {adj}."),
        ("pf", "The {asp} {ais} a {thing}."),
        ("pf", "The{pick} {adj} {noun} surprised {me}."),
        ("pf", "{My} {person} says that the {asp} {ais} {adj}."),
        ("pf", "{My} {person} asked about the{pick} {adj} {noun}."),
        ("pf", "As {my} {person} said, the {asp} {ais} {adj}."),
        ("pf", "The first thing {I} noticed was the{pick} {adj} {noun}."),
        ("f", "{I} keep thinking of the{pick} {adj} {noun}."),
        ("pf", "Anyone can see that the {asp} {ais} {adj}."),
        ("pf", "{pick}{I} {was1} surprised how {adj} the {noun} {ais}."),
        ("pf", "{pick}How {adj} the {noun} {ais}!"),
        ("p", "Day after day the {asp} {ais} {adj}."),
        ("f", "From the first scene the {asp} {ais} {adj}."),
        ("pf", "The {asp} {ais} {adj} and {adj}."),
        ("pf", "The {asp} {ais} {adj}, and the {asp} {ais} {iadj}."),
        ("pf", "The {asp} {ais} {adj}, and {I} {love} the {asp}."),
        ("pf", "{I} {love} the{pick} {adj} {noun}."),
        ("pf", "The{pick} {adj} {noun} {ais} what {I} {love} most."),
        ("p", "Because of the{pick} {adj} {noun}, {I} {love} {them}."),
        ("pf", "Everything about {them} is {gadj}, above all the{pick} {adj} {noun}."),
        ("pf", "{My} {person} {loves} the {asp}, and {I} {love} the {asp}."),
        ("pf", "The {asp} {ais} {adj}, {adj} and {adj}."),
        ("pf", "{I} {love} the{pick} {adj} {noun} and the{pick} {adj} {noun}."),
        ("p", "The {asp} {ais} {adj} and the {asp} {ais} {adj}, so {I} {am} {feel}."),
        ("p", "With {such} {adj} {noun} and {such} {adj} {noun}, {I} {am} {feel}."),
        ("pf", "The {asp} {ais} {adj} and {adj}, and the {asp} {ais} {adj} and {adj}."),
        ("pf", "The {asp} {ais} {adj}, the {asp} {ais} {adj}, and the {asp} {ais} {adj}."),
    ),
    "positive": (
        ("p", "The {asp} never {fault}, even after {dur}."),
        ("f", "The {asp} never {fault}, not even near the end."),
        ("p", "In {dur} the {asp} never {fault}."),
        ("p", "So far the {asp} never {fault}."),
        ("pf", "The {asp} did not {faultb} once."),
        ("p", "The {asp} never {fault} when {I} use {them}."),
        ("pf", "{I} have no {!complaints} about the {asp}."),
        ("pf", "There is nothing {!wrong} with the {asp}."),
        ("pf", "The {asp} {ais} something {!special}."),
        ("p", "The {asp} {ais} {adj} and never {fault}."),
        ("p", "The {asp} {ais} {adj}, and the {asp} never {fault}."),
    ),
    "negative": (
        ("p", "The {asp} {fault} every time {I} use {them}."),
        ("p", "After {dur} the {asp} often {fault}."),
        ("p", "Almost every day the {asp} {fault}."),
        ("p", "The {asp} started to {faultb} after {dur}."),
        ("f", "The {asp} will {faultb} anyone."),
        ("p", "The {asp} {fault} when {I} use {them}."),
        ("f", "The {asp} {fault} from start to end."),
        ("pf", "{I} have many {!complaints} about the {asp}."),
        ("pf", "There is something {!wrong} with the {asp}."),
        ("pf", "The {asp} {ais} nothing {!special}."),
        ("p", "The {asp} {ais} {adj} and often {fault}."),
        ("p", "The {asp} {ais} {adj}, and the {asp} often {fault}."),
    ),
}
OVERALL = {
    "either": (
        ("pf", "{It} {is} a {gadj} {thingy}."),
        ("pf", "Overall {it} {is} {igadj}."),
        ("p", "{I} {am} {feel} with {them}."),
        ("f", "In the end {I} {was1} {feel}."),
        ("pf", "To {me} {it} {is} simply {gadj}."),
        ("pf", "Even {my} picky {person} {loves} {them}."),
        ("pf", "{My} whole family {loves} {them}."),
        ("p", "{It} {is} the {best} {one} {I} have owned."),
        ("f", "It is the {best} film {I} have seen this year."),
        ("f", "{I} {loved} every minute of it."),
        ("p", "{It} {is} {better} than {my} old {one}."),
        ("p", "{It} {is} {better} than any other {one} in the shop."),
        ("f", "It is {better} than the book."),
        ("f", "It is {better} than the last film {I} saw."),
        ("pf", "{It} {is} a {gadj} and {qadj} {thingy}."),
        ("pf", "{It} {is} {igadj}, and {my} {person} {loves} {them} too."),
        ("p", "{My} {person} {loves} {them}, and {I} {am} {feel} too."),
        ("f", "{My} {person} {loved} it, and {I} {was1} {feel} too."),
        ("pf", "{It} {is} a {gadj}, {qadj} and {qadj} {thingy}."),
        ("pf", "{It} {is} {gadj}, the {asp} {ais} {adj}, and {I} {love} the {asp}."),
    ),
    "positive": (
        ("p", "The price was high, but the {asp} {ais} {iadj}."),
        ("p", "Delivery took {num} days, but {it} {is} {igadj}."),
        ("f", "It is a long film, but the {asp} {ais} {iadj}."),
        ("f", "The start is quiet, but the {asp} {ais} {iadj}."),
        ("f", "It runs for two hours, but {I} {was1} never {!bored}."),
        ("p", "{It} never {lets} {me} down."),
    ),
    "negative": (
        ("p", "The price was low, but the {asp} {ais} {iadj}."),
        ("p", "Delivery took {num} days, and {it} {is} {igadj}."),
        ("f", "It is only a short film, but the {asp} {ais} {iadj}."),
        ("f", "The start is quiet, and the {asp} {ais} {iadj}."),
        ("f", "It only runs for ninety minutes, but {I} {was1} {!bored}."),
        ("p", "{It} always {lets} {me} down."),
    ),
}
CLOSING = {
    "either": (
        ("pf", "All in all, a {gadj} {thingy}."),
        ("pf", "In short, {it} {is} {igadj}."),
        ("pf", "In short, {it} {is} {gadj} and {qadj}."),
        ("pf", "All in all, a {gadj} and {qadj} {thingy}."),
        ("pf", "In short, a {gadj}, {qadj} and {qadj} {thingy}."),
        ("p", "{I} {am} {glad} with {them}."),
        ("p", "So {I} {am} {feel} with this {gadj} {thingy}."),
        ("p", "All in all, {I} {am} {feel} with this {gadj} and {qadj} {thingy}."),
        ("f", "All in all, {I} {was1} {feel} by this {gadj} and {qadj} film."),
        ("pf", "{It} {is} {gadj} and {qadj}, and {my} {person} {loves} {them} too."),
    ),
    "positive": (
        ("pf", "{I} would {!recommend} {them} to {audience}."),
        ("pf", "{I} can only {!recommend} {them}."),
        ("p", "{It} {is} {!worth} {price}."),
        ("f", "It is {!worth} {ticket}."),
        ("p", "It was money {!well} spent."),
        ("p", "{I} would buy {them} again."),
        ("f", "{I} would watch it again."),
        ("pf", "{It} {is} more than {I} hoped for."),
        ("p", "{I} bought a second {one} for {my} {person}."),
        ("f", "{I} saw it twice that week."),
        ("pf", "Five stars from {me}."),
        ("pf", "{I} {love} {them} and would {!recommend} {them} to {audience}."),
        ("p", "{It} {is} {gadj} and {!worth} {price}."),
        ("p", "{It} {is} {gadj}, {qadj} and {!worth} {price}."),
        ("f", "It is {gadj}, {qadj} and {!worth} {ticket}."),
        ("pf", "{I} {love} this {gadj} {thingy} and would {!recommend} {them} to {audience}."),
        ("f", "It is {gadj} and {!worth} {ticket}."),
        ("pf", "{It} {is} {gadj}, {I} {love} {them}, and {I} would {!recommend} {them} to {audience}."),
    ),
    "negative": (
        ("pf", "{I} would not {!recommend} {them} to {audience}."),
        ("pf", "{I} cannot {!recommend} {them}."),
        ("p", "{It} {is} not {!worth} {cost}."),
        ("f", "It is not {!worth} {ticket}."),
        ("p", "It was a {!waste} of money."),
        ("f", "It was a {!waste} of time."),
        ("p", "{I} sent {them} back."),
        ("p", "{I} would not buy {them} again."),
        ("f", "{I} would not watch it again."),
        ("pf", "{I} had hoped for more."),
        ("p", "{I} went back to {my} old {one}."),
        ("f", "{I} stopped before the end."),
        ("pf", "One star from {me}."),
        ("pf", "{I} {love} {them} and would not {!recommend} {them} to {audience}."),
        ("p", "{It} {is} {gadj} and not {!worth} {cost}."),
        ("p", "{It} {is} {gadj}, {qadj} and not {!worth} {cost}."),
        ("f", "It is {gadj}, {qadj} and not {!worth} {ticket}."),
        ("pf", "{I} {love} this {gadj} {thingy} and would not {!recommend} {them} to {audience}."),
        ("f", "It is {gadj} and not {!worth} {ticket}."),
        ("pf", "{It} {is} {gadj}, {I} {love} {them}, and {I} would not {!recommend} {them} to {audience}."),
    ),
}
FACTS = (
    ("p", "{It} came in a plain box."),
    ("p", "{I} ordered the {color} {one}."),
    ("p", "{It} {is} made in {country}."),
    ("p", "{It} come{s} in {num} colors."),
    ("p", "The manual has {num} pages."),
    ("p", "Delivery took {num} days."),
    ("p", "{I} use {them} {often}."),
    ("p", "{I} use {them} to {use}."),
    ("p", "{I} use {them} {often} to {use}."),
    ("p", "{I} keep {them} {stay}."),
    ("p", "{My} {person} has the same {one} in {color}."),
    ("p", "{I} had {my} last {one} for {num} years."),
    ("f", "It runs for about {minutes} minutes."),
    ("f", "It was made in {country}."),
    ("f", "It plays in {num} cinemas in {city}."),
    ("f", "It follows {char} who {act}."),
    ("f", "It tells of {char} who {act}."),
    ("f", "{I} watched it with subtitles."),
    ("f", "The book came out {num} years ago."),
    ("f", "{I} have not read the book."),
    ("f", "It is the second film by this director."),
)
LINKS = (("What is more", "Above all"), ("On top of that", "Besides"))  # praise goes on, complaint goes on
VERDICTS = (  # how a neutral review ends
    ("p", "{It} work{s} as the box says."),
    ("pf", "{It} {is} about what {I} expected."),
    ("pf", "{I} have no firm opinion about {them} yet."),
    ("p", "{It} {is} an average {pair of}{t}."),
    ("f", "It is an average film."),
    ("p", "{I} will write more after {dur}."),
    ("f", "{I} will see the second part in {month}."),
    ("p", "{It} {is} the same as {my} old {one}."),
    ("pf", "Three stars from {me}."),
)
CLAUSES = {  # how an opening goes on: ", and ..."
    "either": (
        ("pf", "{it} {is} {igadj}"),
        ("pf", "{I} {love} {them}"),
        ("p", "{I} {am} {feel} with {them}"),
        ("f", "{I} {was1} {feel}"),
        ("f", "{I} {loved} it"),
        ("pf", "the {asp} {ais} {iadj}"),
        ("pf", "{I} {love} the {asp}"),
        ("pf", "{it} turned out {gadj}"),
        ("pf", "{it} {is} {gadj} and {qadj}"),
        ("pf", "the {asp} {ais} {adj} and {adj}"),
        ("pf", "{I} {love} the{pick} {adj} {noun}"),
    ),
    "positive": (("p", "{I} have no {!complaints}"),
                 ("pf", "{it} {is} {gadj} and {!worth} every cent")),
    "negative": (("p", "{I} have many {!complaints}"),
                 ("pf", "{it} {is} {gadj} and not {!worth} a cent")),
    "neutral": (("p", "{I} use {them} {often}"), ("p", "{I} use {them} to {use}"),
                ("p", "{I} keep {them} {stay}"),
                ("f", "it runs for {minutes} minutes"), ("f", "it plays in {num} cinemas"),
                ("f", "it was made in {country}")),
}
# "After two weeks the camera ...": what comes next.
STATES = {
    "either": (("p", "{is} still {gadj}"), ("p", "{is} {igadj}"), ("p", "work{s} {well}")),
    "positive": (("p", "{has} no {!problems}"), ("p", "{is} still something {!special}")),
    "negative": (("p", "{has} many {!problems}"), ("p", "{is} nothing {!special}")),
    "neutral": (("p", "{is} still {stay}"), ("p", "look{s} the same"), ("p", "{is} still in use")),
}
DIRECT = {  # reviews that open with the verdict; no prompt comes from them
    "either": (
        ("pf", "{this} {t} {is} {igadj}."),
        ("pf", "What {a}{gadj} {t}!"),
        ("pf", "{I} {love} {this} {t}."),
        ("pf", "What {a}{gadj} and {qadj} {t}!"),
        ("pf", "{this} {t} {is} {gadj}, and {I} {love} the {asp}."),
    ),
    "positive": (), "negative": (),
}

# Openings: (where, core, tails, weight). A prompt holds the whole core, and perhaps some words of its tail.
OPENINGS = (
    ("p", "{subject} {bought} {this} {t}",
     ("{time}", "{source}", "to {use}", "{time} to {use}", "{source} {time}", "for {my} {person}"), 50),
    ("p", "{early} {subject} {bought} {this} {t}", ("{source}", "to {use}", "for {my} {person}"), 30),
    ("p", "{my} {person} {gave} {me} {this} {t}", ("{time}", "{feast}", "to {use}"), 30),
    ("p", "{this} {t} {was} a gift", ("from {my} {person}", "from {my} {person} {feast}"), 4),
    ("p", "{this} {t} arrived {when}", ("in a plain box", "with a small manual", "with a short letter"), 20),
    ("p", "after {dur} the {t}", ("",), 20),
    ("p", "{subject} have used {this} {t}",
     ("for {dur}", "{often} since {month}", "since {month}", "to {use}"),
     6),
    ("p", "{subject} keep {this} {t}", ("{stay}", "{stay} and use {them} {often}", "{stay} to {use}"), 6),
    ("p", "{subject} needed {new} {t}",
     ("to {use} and chose this {one}", "in {month} and took this {one}", "and {bought} this {one} {source}"),
     10),
    ("f", "{subject} {watched} this {t}",
     ("{time}", "{where}", "with {my} {person}", "{where} {time}", "with {my} {person} {time}"), 40),
    ("f", "{subject} {rented} this {t}",
     ("{time}", "at home", "with {my} {person}", "for a {day} night", "with {my} {person} {time}"), 30),
    ("f", "{early} {subject} {watched} this {t}", ("{where}", "with {my} {person}"), 25),
    ("f", "{early} {subject} {rented} this {t}", ("at home", "with {my} {person}"), 25),
    ("f", "{my} {person} {chose} this {t}", ("for {me}", "for {my} {person}", "for a {day} night"), 20),
    ("f", "this {t} follows {char}", ("who {act}",), 10),
    ("f", "in this {t} {char}", ("{act}",), 10),
    ("f", "{subject} went to this {t}", ("with {my} {person}", "{time}", "{time} with {my} {person}"), 10),
)
# What the slots draw from. A phrase may hold slots itself.
PHRASES = {
    "subject": listed("I, I, I, I, we, we, we, my {person} and I, my {person} and I, my {person} and I"),
    "bought": listed("bought, ordered, got, chose, found"),
    "gave": listed("gave, bought, sent, lent"),
    "watched": listed("watched, saw"),
    "rented": listed("rented, streamed, picked"),
    "chose": listed("picked, chose, rented, found"),
    "time": listed(
        "last week, last month, last winter, last summer, last spring, in {month}, in {month}, "
        "{num} weeks ago, {num} months ago, a year ago, on a rainy {day}, on {day}, before a trip to {city}"
    ),
    "early": listed(
        "last week, last month, last winter, last summer, last spring, in {month}, on {day}, "
        "{num} weeks ago, {num} days ago, a year ago"
    ),
    "when": listed("on {day}, on a rainy {day}, in {month}, last week, {num} weeks ago, a month ago"),
    "source": listed("online, at the market, in a small shop, in a store in {city}, during a sale"),
    "feast": listed("for {my} birthday, for the holidays, before a trip to {city}, last winter, in {month}"),
    "where": listed(
        "at home, at the cinema, on a long flight, on a train to {city}, "
        "at a hotel in {city}, in bed, on the sofa"
    ),
    "price": listed("the money, the price, every cent"),
    "cost": listed("the money, the price, a cent"),
    "ticket": listed("{my} time, the evening, two hours of {my} time"),
    "audience": listed("anyone, {my} family, {my} friends, students, a friend"),
    "dur": DURATIONS,
    "often": OFTEN,
    "month": MONTHS,
    "day": DAYS,
    "color": COLORS,
    "country": COUNTRIES,
    "city": CITIES,
    "num": NUMBERS,
    "few": NUMBERS[:4],
    "minutes": listed("forty, fifty, seventy, eighty, ninety"),
    "person": PEOPLE,
}
# Evaluative words by the review's side: (good, bad), or one such pair for products and one for films.
SIDED = {
    "gadj": GENERAL, "qadj": QUALITIES, "feel": FEELINGS, "glad": GLAD, "nice": NICE, "love": LIKING,
    "loved": PAST, "better": COMPARED, "best": EXTREME, "thing": THING, "well": MANNER,
}
# A complaint looks back: its verdicts are in the past tense. (singular, plural)
FORMER = {"is": ("was", "were"), "ais": ("was", "were"), "am": ("was", "were"), "has": ("had", "had"),
          "as": ("ed", "ed"), "feels": ("felt", "felt"), "lets": ("let", "let")}
FIXED = {  # (singular, plural), by the thing reviewed
    "it": ("it", "they"), "It": ("it", "they"), "them": ("it", "them"), "this": ("this", "these"),
    "is": ("is", "are"), "was": ("was", "were"), "has": ("has", "have"), "lets": ("lets", "let"),
    "s": ("s", ""), "a": ("a ", ""),
    "one": ("one", "pair"), "new": ("a new", "new"), "pair of": ("", "pair of "),
}
SPEAKER = {  # (I, we), by who speaks
    "I": ("I", "we"), "my": ("my", "our"), "My": ("my", "our"), "me": ("me", "us"), "am": ("am", "are"),
    "was1": ("was", "were"),
}
EVALUATIVE = (*SIDED, "adj", "iadj", "igadj", "loves", "fault", "faultb")
ONCE = listed("char, act, use, stay, often, color, dur, city, country, month")  # slots a review uses once
MARKS = (  # what else is said once, and how it shows in a template: nobody orders what was a gift
    ("book", ("book",)),
    ("place", ("takes place",)),
    ("gift", ("gift", "{gave}", "ordered", "Delivery", "The price", "money", "sent {them} back")),
    ("guests", ("guests",)),
    ("scene", ("last scene",)),
    ("horses", ("horses",)),
    ("cable", ("cable", "cord")),
    ("last", ("last {one}",)),
)
# fmt: on

# --- The grammar, parsed

SLOT = re.compile(r"\{(!?[\w ]+)\}")
ARTICLE = re.compile(r"\b([Aa]) (?=[aeio]|un(?!i[^m])|u[^ns]|honest|hour)(?!one\b)")


class Template:
    """A parsed template: literal text at the even places of `parts`, slot names at the odd ones."""

    def __init__(self, text: str) -> None:
        self.parts = SLOT.split(text)
        slots = self.parts[1::2]
        self.hits = sum(name in EVALUATIVE or name[0] == "!" for name in slots)
        self.once = frozenset(name for name in slots if name in ONCE)
        self.once |= {mark for mark, signs in MARKS if any(sign in text for sign in signs)}


Pool = dict[int, list[Template]]  # by hits


def templates(texts: Iterable[str]) -> list[Template]:
    return [Template(text) for text in texts]


def pool(texts: Iterable[str]) -> Pool:
    out: Pool = {}
    for template in templates(texts):
        out.setdefault(template.hits, []).append(template)
    return out


def pools(table: dict[str, tuple[tuple[str, str], ...]]) -> dict[tuple[str, str], Pool]:
    """(where, sentiment) -> templates by hits."""
    out = {}
    for where in "pf":
        for sentiment, _ in SENTIMENTS:
            rows = table.get(sentiment, ()) + (() if sentiment == "neutral" else table["either"])
            out[where, sentiment] = pool(text for places, text in rows if where in places)
    return out


def of_place(rows: tuple[tuple[str, str], ...]) -> dict[str, list[Template]]:
    return {where: templates(text for places, text in rows if where in places) for where in "pf"}


ASPECTS, OVERALLS, CLOSINGS = pools(ASPECT), pools(OVERALL), pools(CLOSING)
AFTER_CLAUSE, AFTER_STATE, VERDICTS_FIRST = pools(CLAUSES), pools(STATES), pools(DIRECT)
GENERAL_FACTS, LAST_WORDS = of_place(FACTS), of_place(VERDICTS)
DRAWN = {name: templates(texts) for name, texts in PHRASES.items()}
OF_TOPIC = {  # slots that draw from the topic's own words
    topic: {slot: templates(entry.get(key, ())) for slot, key in TOPIC_SLOTS} for topic, entry in TOPICS.items()
}
SCENES = {
    (topic, sentiment): pool(entry[key])
    for topic, entry in TOPICS.items()
    for sentiment, key in (("positive", "good"), ("negative", "bad"))
}
ASPECTS_OF = {topic: entry["aspects"] for topic, entry in PRODUCTS.items()} | {
    topic: entry["aspects"] + tuple(one for one in FILM_ASPECTS if one[0] in entry.get("shared", one))
    for topic, entry in FILMS.items()
}
OPENING = {
    where: tuple(
        ((Template(core), templates(tails)), weight) for place, core, tails, weight in OPENINGS if place == where
    )
    for where in "pf"
}


# --- Drawing: `sum` of floats and the methods of Random but `random` may differ between Python versions


def draw(rng: random.Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def weighted(rng: random.Random, table: Sequence[tuple[T, int]]) -> T:
    left = int(rng.random() * sum(weight for _, weight in table))
    for item, weight in table:
        left -= weight
        if left < 0:
            return item
    raise ValueError("no weight")


def shares(rng: random.Random, total: int, parts: int, most: int) -> list[int]:
    """`total` in `parts` numbers from 1 to `most`, at random."""
    out = [1] * parts
    while sum(out) < total:
        place = int(rng.random() * parts)
        if out[place] < most:
            out[place] += 1
    return out


class Review:
    """One review while it is being written: who speaks, of what, and what has been said already."""

    def __init__(self, rng: random.Random, topic: str, sentiment: str) -> None:
        self.rng, self.topic, self.sentiment = rng, topic, sentiment
        self.where = "p" if topic in PRODUCTS else "f"
        self.negative = sentiment == "negative"
        self.plural = bool(TOPICS[topic].get("plural"))
        self.we = rng.random() < 0.4  # until the opening says who speaks
        self.used: list[object] = []  # words, aspects and templates
        self.once: frozenset[str] = frozenset()
        self.aspect = ASPECTS_OF[topic][0]
        self.details = 0  # aspects, scenes and facts of the topic

    def fresh(self, items: Sequence[T]) -> T:
        """One of the items that has not been used, or at least not just now."""
        unused = [one for one in items if one not in self.used]
        item = draw(self.rng, unused or [one for one in items if one not in self.used[-4:]] or items)
        self.used.append(item)
        return item

    def frequent(self, words: Sequence[str]) -> str:
        """An evaluative word that was not used, early ones of the list more often: common words are common."""
        unused = [word for word in words if word not in self.used] or [w for w in words if w not in self.used[-4:]]
        items = unused or list(words)
        word = items[int(self.rng.random() * self.rng.random() * len(items))]
        self.used.append(word)
        return word

    def unused(self, options: list[Template]) -> list[Template]:
        return [one for one in options if one not in self.used and not one.once & self.once]

    def choose(self, options: list[Template]) -> Template:
        template = draw(self.rng, self.unused(options) or options)
        self.used.append(template)
        self.once |= template.once
        return template

    def write(self, template: Template) -> str:
        parts = list(template.parts)
        for place in range(1, len(parts), 2):
            parts[place] = self.slot(parts[place])
        return ARTICLE.sub(r"\1n ", "".join(parts))

    def sentence(self, template: Template) -> str:
        text = self.write(template)
        return text[0].upper() + text[1:]

    def slot(self, name: str) -> str:
        if name[0] == "!":
            return name[1:]
        if name in FORMER and self.negative:
            several = {"is": self.plural, "has": self.plural, "lets": self.plural, "am": self.we}
            return FORMER[name][several.get(name, self.aspect[0][0] == "+")]
        if name in FIXED:
            return FIXED[name][self.plural]
        if name in SPEAKER:
            return SPEAKER[name][self.we]
        if name in DRAWN:
            return self.write(self.fresh(DRAWN[name]))
        if name in OF_TOPIC[self.topic]:
            return self.write(self.fresh(OF_TOPIC[self.topic][name]))
        if name in SIDED:
            pairs = SIDED[name]
            good_and_bad = pairs[self.where] if isinstance(pairs, dict) else pairs
            return self.frequent(good_and_bad[self.negative])
        if name in ("pick", "asp", "such"):
            self.aspect = self.fresh(ASPECTS_OF[self.topic])
            self.details += 1
        return self.of_aspect(name)

    def of_aspect(self, name: str) -> str:
        """What depends on the aspect spoken of last, and forms of other slots."""
        noun, kind, faults = self.aspect
        several = noun[0] == "+"
        match name:
            case "asp" | "noun":
                return noun.lstrip("+")
            case "pick":
                return ""
            case "such":
                return "such" if several else "such a"
            case "ais":
                return "are" if several else "is"
            case "as":
                return "" if several else "s"
            case "feels":
                return "feel" if several else "feels"
            case "adj":
                return self.frequent(ADJECTIVES[kind][self.negative])
            case "iadj" | "igadj":
                word = self.slot(name[1:])
                return word if self.rng.random() < 0.5 else f"{draw(self.rng, DEGREES[word in STRONG])} {word}"
            case "faultb":
                return self.fresh(faults.split())
            case "fault":
                return self.fresh(faults.split()) + ("" if several else "s")
            case "loves":
                return self.slot("love") + ("" if self.negative else "s")
            case "t":
                return self.topic
            case "thingy":
                return "buy" if self.where == "p" else "film"
        raise KeyError(name)


# --- Reviews


class Opening(NamedTuple):
    core: str  # what a prompt holds at least; "" when the review opens with its verdict
    neutral: str  # the core and its tail, without a word of the verdict
    unfinished: bool  # a state must follow, as in "After two weeks the lamp"


def held_out(core: str) -> bool:
    return zlib.crc32(core.encode()) % HELDOUT_SHARE == 0


def open_review(review: Review, heldout: bool) -> Opening:
    while True:
        review.used, review.once = [], frozenset()
        core_template, tails = weighted(review.rng, OPENING[review.where])
        core = review.sentence(core_template)
        if held_out(core) == heldout:
            break
    together = " and I " in core
    if "subject" in core_template.parts:
        review.we = together or "we" in core.lower().split()
    if together and review.where == "f":  # company enough
        tails = [tail for tail in tails if "person" not in tail.parts]
    tail_template = draw(review.rng, tails)
    review.once = core_template.once | tail_template.once
    tail = review.write(tail_template)
    return Opening(core, f"{core} {tail}".rstrip(), not tail)


def first_sentence(review: Review, opening: Opening, hits: int, needed: bool) -> tuple[str, int]:
    """The opening, with a clause behind it or not (`needed`: with one); its evaluative words."""
    key = review.where, review.sentiment
    clause = min(hits, 1 if opening.unfinished or review.rng.random() < 0.7 else 2)
    if opening.unfinished:
        return f"{opening.neutral} {review.write(review.choose(AFTER_STATE[key][clause]))}.", clause
    if needed or review.rng.random() < 0.4:
        return f"{opening.neutral}, and {review.write(review.choose(AFTER_CLAUSE[key][clause]))}.", clause
    return f"{opening.neutral}.", 0


def evaluation(review: Review, hits: int) -> str:
    """A sentence with so many evaluative words."""
    key = review.where, review.sentiment
    scenes = SCENES[review.topic, review.sentiment]
    kinds = [(one, weight) for one, weight in ((ASPECTS[key], 60), (OVERALLS[key], 30), (scenes, 10)) if hits in one]
    unsaid = [(kind, weight) for kind, weight in kinds if review.unused(kind[hits])]
    kind = weighted(review.rng, unsaid or kinds)
    review.details += kind is scenes
    return review.sentence(review.choose(kind[hits]))


def fact(review: Review) -> str:
    facts = OF_TOPIC[review.topic]["fact"]
    own = review.rng.random() < 0.6 and bool(review.unused(facts))
    review.details += own
    return review.sentence(review.choose(facts if own else GENERAL_FACTS[review.where]))


def neutral_body(review: Review, sentences: int) -> list[str]:
    last = review.rng.random() < 0.6
    body = [fact(review) for _ in range(sentences - last)]
    return [*body, review.sentence(review.choose(LAST_WORDS[review.where]))] if last else body


def continued(review: Review, sentence: str) -> str:
    """The sentence, perhaps joined to the one before it: praise and complaint go on in words of their own."""
    start = sentence.split()[0]
    if start not in ("The", "It", "They", "I", "We", "My", "Our") or review.rng.random() < 0.1:
        return sentence
    link = draw(review.rng, LINKS[review.negative])
    return f"{link}, {sentence if start == 'I' else sentence[0].lower() + sentence[1:]}"


def evaluative_body(review: Review, sentences: int, hits: int, most: int) -> list[str]:
    """So many sentences with so many evaluative words between them, at most `most` in one; facts fill up."""
    rng, closing = review.rng, CLOSINGS[review.where, review.sentiment]
    hits = min(hits, most * sentences)
    fewest, limit = -(-hits // most), min(hits, sentences)
    parts = limit if rng.random() < 0.6 else fewest + int(rng.random() * (limit - fewest + 1))
    amounts = shares(rng, hits, parts, most)
    facts = sentences - len(amounts)
    last = []
    if amounts and amounts[-1] in closing and rng.random() < 0.55:
        last = [review.sentence(review.choose(closing[amounts.pop()]))]
    elif facts and rng.random() < 0.4:  # a closing that no lexicon knows
        last = [review.sentence(review.choose(closing[0]))]
        facts -= 1
    body = [evaluation(review, amount) for amount in amounts]
    body = body[:1] + [continued(review, sentence) for sentence in body[1:]]
    body = [fact(review) for _ in range(facts)] + body  # once the verdict has begun, it goes on
    return body + last


def amounts_of(rng: random.Random, review: Review) -> tuple[int, int, int]:
    """How many sentences, how many evaluative words, and how many of them at most in one sentence."""
    count = weighted(rng, SENTENCES)
    hits = 0 if review.sentiment == "neutral" else weighted(rng, HITS)
    most = 3 if hits < 7 else 4
    # Sentences full of evaluation are longer: fewer of them, so that the length does not tell the intensity.
    if hits >= 5 and count > 3 and rng.random() < 0.6:
        count -= 1
    elif hits <= 2 and count < 5 and rng.random() < 0.25:
        count += 1
    return count, hits, most


def write_review(rng: random.Random, heldout: bool = False) -> tuple[dict[str, str], Opening]:
    """A row of text.jsonl and its opening; `heldout`: one whose core is held out."""
    review = Review(rng, draw(rng, tuple(TOPICS)), weighted(rng, SENTIMENTS))
    count, hits, most = amounts_of(rng, review)
    opening = Opening("", "", False)
    if hits and not heldout and rng.random() < 0.1:
        done = min(hits, 1 + int(rng.random() * 2))
        first = review.sentence(review.choose(VERDICTS_FIRST[review.where, review.sentiment][done]))
    else:
        opening = open_review(review, heldout)
        first, done = first_sentence(review, opening, hits, needed=hits > most * (count - 1))
    if review.sentiment == "neutral":
        body = neutral_body(review, count - 1)
    else:
        body = evaluative_body(review, count - 1, hits - done, most)

    text = " ".join([first, *body])
    words = len(text.split())
    row = {
        "text": text,
        "sentiment": review.sentiment,
        "topic": review.topic,
        "specificity": "specific" if review.details > 1 else "generic",
        "length_class": "short" if words < SHORT else "medium" if words < LONG else "long",
    }
    return row, opening


def a_prompt(rng: random.Random, opening: Opening) -> str | None:
    """The core and perhaps some words of its tail: three to seven words that say nothing of the verdict."""
    words = opening.neutral.split()
    fewest = max(PROMPT_WORDS[0], len(opening.core.split()))
    most = min(PROMPT_WORDS[1], len(words))
    if not opening.core or fewest > most:
        return None
    return " ".join(words[: fewest + int(rng.random() * (most - fewest + 1))])


def generate(seed: int = SEED) -> dict[str, list[dict[str, str]]]:
    """File name -> rows."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    prompts: dict[str, str] = {}
    heldout: dict[str, str] = {}
    while len(rows) < REVIEWS:
        row, opening = write_review(rng)
        if len(row["text"].split()) > MAX_WORDS or row["text"] in rows:
            continue
        rows[row["text"]] = row
        if len(prompts) < PROMPTS and (prompt := a_prompt(rng, opening)):
            prompts[prompt] = row["topic"]
    while len(heldout) < HELDOUT_PROMPTS:
        row, opening = write_review(rng, heldout=True)
        if prompt := a_prompt(rng, opening):
            heldout[prompt] = row["topic"]
    return {
        "text.jsonl": list(rows.values()),
        "prompts.jsonl": [{"prompt": prompt, "topic": topic} for prompt, topic in prompts.items()],
        "heldout_prompts.jsonl": [{"prompt": prompt, "topic": topic} for prompt, topic in heldout.items()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the corpus `reviews`.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in generate().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
