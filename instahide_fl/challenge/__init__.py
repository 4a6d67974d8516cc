"""Challenges in the format of the InstaHide Challenge: make, attack, score.

Source: the README of github.com/Hazelsuko07/InstaHide_Challenge: 5,000 encodings of 100
private images, cross-dataset with k = 6, to be turned back into the images. The data
themselves were never ours to ship, and the truth behind them was never published: so
this package makes challenges of its own, with a truth to score against.

    files.py             what is published: encryption.npy, label.npy, settings.toml
    make.py              a new challenge
    challenge_target.py  a challenge as something to attack
    decryption.py        from what an attack recovered to one image for each encoding
    score.py             the metrics of the challenge's rules, and their baselines
    leaderboard.py       the published figures, and how to read them
"""
