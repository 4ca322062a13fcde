package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/config"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// inspectCmd shows an object of the cache.
type inspectCmd struct {
	Object string `arg:"" name:"file|key" help:"An attached file, or an object's key or the start of it."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// Help is the long help.
func (inspectCmd) Help() string {
	return `Reads the cache itself, with or without a running instance; what a running one
has fetched in the last seconds may not be on record yet.

EXIT STATUS
  0 ok  1 error, or no such object  2 usage  4 corrupt`
}

// barWidth is the width of the presence bar in characters.
const barWidth = 64

// Run is the verb.
func (c *inspectCmd) Run(a *app) (err error) {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	root, err := cache.OpenRootReadOnly(cfg.Root)
	if err != nil {
		return fmt.Errorf("open cache %s: %w", cfg.Root, err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	id, err := find(root, c.Object)
	if err != nil {
		return err
	}
	object, err := root.Object(id)
	if err != nil {
		return err
	}
	in, err := object.Inspect()
	if err := errors.Join(err, object.Close()); err != nil {
		return err
	}
	in.Source = daemon.RedactSource(in.Source)
	if c.JSON {
		return a.printJSON(in)
	}
	width := 0
	if f, ok := a.stdout.(*os.File); ok && isTerminal(f) {
		width = barWidth
	}
	return in.Print(a.stdout, width)
}

// find takes an attached file's path or the start of a key.
func find(root *cache.Root, name string) (ondemand.ObjectID, error) {
	if id, ok := daemon.ObjectAt(root.Dir(), name); ok {
		return id, nil
	}
	id, err := root.Find(name)
	if err != nil {
		return "", fmt.Errorf("find %s in %s: %w", name, root.Dir(), err)
	}
	return id, nil
}

// checkCmd proves presence against the data.
type checkCmd struct {
	Objects []string `arg:"" optional:"" name:"file|key" help:"Attached files or keys; default: every object."`
	Verify  bool     `help:"Compare the bytes too: with the digest where one is known, else with the source."`
	Repair  bool     `help:"Forget what is wrong, so that it is fetched again. Needs the cache for itself."`
	JSON    bool     `name:"json" help:"Print JSON."`
}

// Help is the long help.
func (checkCmd) Help() string {
	return `A block that is recorded as present and is a hole in the data is corrupt.

EXIT STATUS
  0 all is right  1 error  2 usage  4 corrupt, also where it was repaired
  5 source cannot be reached  6 --repair while an instance has the cache`
}

// Run is the verb.
func (c *checkCmd) Run(a *app) (err error) {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	open := cache.OpenRootReadOnly
	if c.Repair {
		open = func(dir string) (*cache.Root, error) { return cache.OpenRoot(dir, cache.RootOptions{}) }
	}
	root, err := open(cfg.Root)
	if err != nil {
		return fmt.Errorf("open cache %s: %w", cfg.Root, err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	ids, err := c.choose(root)
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	reports, corrupt := []cache.Report{}, 0
	for _, id := range ids {
		rep, err := c.one(ctx, a, cfg, root, id)
		if err != nil {
			return fmt.Errorf("check %s: %w", id.Short(), err)
		}
		if rep.Corrupt() {
			corrupt++
		}
		reports = append(reports, rep)
	}
	if err := c.print(a, reports); err != nil {
		return err
	}
	if corrupt > 0 {
		hint := "`lacuna check --repair` forgets what is wrong, and it is fetched again"
		if c.Repair {
			hint = "what was wrong is forgotten and will be fetched again"
		}
		return &control.Error{Message: fmt.Sprintf("%d of %d objects are corrupt", corrupt, len(ids)), Hint: hint, Exit: control.ExitCorrupt}
	}
	return nil
}

func (c *checkCmd) choose(root *cache.Root) (ids []ondemand.ObjectID, err error) {
	if len(c.Objects) == 0 {
		return root.List()
	}
	for _, name := range c.Objects {
		id, err := find(root, name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// one checks one object.
func (c *checkCmd) one(ctx context.Context, a *app, cfg config.Config, root *cache.Root, id ondemand.ObjectID) (rep cache.Report, err error) {
	object, err := root.Object(id)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, object.Close()) }()
	p := newProgress(a.stderr)
	defer p.end()
	opt := cache.CheckOptions{
		Repair: c.Repair, Digest: c.Verify,
		Progress: func(n int64) { p.show("checking "+id.Short(), n, object.Size()) },
	}
	meta := object.Meta()
	if c.Verify && !(meta.SHA256 != "" && object.Complete()) {
		blob, done, err := daemon.SourceOf(cfg, version, meta.Source)
		if err != nil {
			return rep, err
		}
		defer func() { err = errors.Join(err, blob.Close(), done()) }()
		opt.Verify = func(ctx context.Context, off, n int64) (io.ReadCloser, error) { return blob.ReadRange(ctx, off, n) }
	}
	return object.Check(ctx, opt)
}

func (c *checkCmd) print(a *app, reports []cache.Report) error {
	if c.JSON {
		return a.printJSON(reports)
	}
	for _, r := range reports {
		state := "ok"
		if r.Corrupt() {
			state = "CORRUPT"
		}
		compared := ""
		if r.Verified {
			compared = ", bytes verified"
		}
		if err := a.print("%.12s %s: %s of %s present%s\n", r.ID, state, sizeText(r.Present), sizeText(r.Size), compared); err != nil {
			return err
		}
		for _, bad := range []struct {
			what   string
			ranges []ondemand.Range
		}{{"recorded as present and missing", append(r.Holes, r.Recovered.Holes...)}, {"other bytes than the source", r.Mismatches}} {
			if len(bad.ranges) > 0 {
				list, err := json.Marshal(bad.ranges)
				if err != nil {
					return err
				}
				if err := a.print("  %s: %s\n", bad.what, list); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
