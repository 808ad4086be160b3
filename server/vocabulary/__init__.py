"""What turns text into token ids and back, in the formats in which checkpoints have it. Knows nothing of chats."""
