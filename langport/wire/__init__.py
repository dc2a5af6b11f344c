"""OpenAI's JSON as typed structs: decode and encode only. Meaning is given to it in `langport.api`."""
