"""Which private images encodings mix, found from the encodings themselves.

components.sparse_mixing     all images private: coefficients are the sparse vectors
in what encodings span
clusters.find_links          some images public: soft labels give coefficients,
clusters in each class give the images
whitening.decorrelating      pixels decorrelated by what public images look like
"""
