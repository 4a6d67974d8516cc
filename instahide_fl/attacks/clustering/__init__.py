"""From encodings and soft labels to private images, without any key.

The stages of `attacks.carlini`, in order:

- `joined`: all encodings of a client; `slots`: what their labels say.
- `public_pursuit`, with `matched_filter`: public images, found in the pool.
- `similarity`: which encodings share a private image.
- `clusters`, `assignment`: which image each encoding shows.
- `refinement`, with `problem` and `hypotheses`: images, links, public parts, in turn.
- `evidence`: whether the result means anything.

`client` runs them, `stages` keeps what they arrive at.
"""
