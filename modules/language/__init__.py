"""Language and vision-language models that `saccade fit` trains and exports."""
