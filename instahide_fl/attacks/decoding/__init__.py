"""From encodings to private images, where mapping and coefficients are known.

An encoding is `sigma * (A x + b)`: a known combination A x of private images, a public
part b (noise, if unknown), and a sign sigma for each pixel. Pixels are problems of
their own that share the matrix A, so all are solved at once.

    least_squares.ridge                   no signs (Mixup): linear least squares
    least_squares.folded_least_squares    signs, few encodings of each image
    second_moments.second_moments         signs, more of them: much better
    choice.decode                         one of these, by name or by itself

Source: Carlini et al., "Is Private Learning Possible with Instance Encoding?", IEEE S&P
2021, last step of the authors' code. Weights by noise, soft signs, second moments and
sign coherence are our own additions; without them an audit would report less leakage.
"""
