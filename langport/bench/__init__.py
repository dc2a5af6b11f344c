"""`langport bench URL`: how fast does a server answer, at so many clients or so many arrivals a second?

It knows nothing of LangPort's server, so that it measures any that speaks OpenAI's API, and all of them alike.
"""
