"""From encodings and soft labels to private images, without knowing any key.

A soft label names the classes in an encoding and the coefficient of each: one *slot*
for each class. What it does not tell is which image of a class it was.

    slots.Slots                   what the labels say; coefficients
    proxies, embedding            a network that tells which slots show the same image,
                                  trained on the attacker's own encodings of other ones
    clusters.cluster              slots of a class, grouped by image
    assignment.assign             which image each slot shows
    public_search.PublicSearch    which images of the pool an encoding contains
    refinement.refine             links, public parts and images, from one another
    stages.Stages                 keeps each of these in a folder, to resume and inspect

Source: Carlini et al., "Is Private Learning Possible with Instance Encoding?", IEEE S&P
2021. Theirs are the order of steps, the absolute value, similarity and assignment. An
embedding in place of a network on pairs, slots, and all of public_search and refinement
are our own.
"""
