"""From encodings to private images, where mapping and coefficients are known.

An encoding is `sigma * (A x + b)`: a known combination A x of private images, a public
part b (noise, if unknown), and a sign sigma for each pixel. Each pixel is a problem of
its own, and all share the matrix A, so they are solved at once.

    least_squares.ridge                   no signs (Mixup): linear least squares
    least_squares.folded_least_squares    signs, few encodings of each image
    second_moments.second_moments         signs, more encodings: much better
    registration.registered_decode        images that were cropped and mirrored
    choice.choose_decoder                 which of the first three reaches most
    choice.decode                         runs one of the first three, by its name

Source: Carlini et al., "Is Private Learning Possible with Instance Encoding?", IEEE S&P
2021, last step of the authors' code. Weights by noise, soft signs, second moments and
sign coherence are our own additions; without them an audit would report less leakage.
"""
