"""Where pixels come from: readers that turn files into samples."""
