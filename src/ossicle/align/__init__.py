"""Word times: a CTC aligner, and the files of other aligners."""
