"""Video clips with questions and answers: files, a synthetic world, preprocessing."""
