"""One opener each for files of any bytes: what they claim is checked before it is believed."""
