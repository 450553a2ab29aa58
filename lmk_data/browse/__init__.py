"""What a person looks at and marks: the queries behind `lmk-shard browse`."""
