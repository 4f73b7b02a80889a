// Gives the shared precompiled header a translation unit to belong to.
