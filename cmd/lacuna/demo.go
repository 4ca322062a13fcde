package main

// demoCmd shows the main job.
type demoCmd struct{}

// Run is the verb.
func (*demoCmd) Run(a *app) error { return a.print("%s\n", version) }
