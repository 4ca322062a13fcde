package e2e

func beManyReader() {}
