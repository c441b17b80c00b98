"""Find when each word is spoken, with a CTC model or from the files of another aligner."""
