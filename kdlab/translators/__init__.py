"""Who translates: Apertium, Hugging Face models, recorded translations, rules; and the memory of translations."""
