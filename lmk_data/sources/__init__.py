"""Where images and labels come from: label tables, folders, tars and zips, and which image belongs to which row."""
