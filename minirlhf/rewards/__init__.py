"""From responses to rewards: calling reward functions, summing and shaping what they give."""
