package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/config"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// inspectCmd shows an object of the cache.
type inspectCmd struct {
	Object string `arg:"" name:"FILE|DIR|KEY" help:"An attached file, a mount of one layer, or an object's key or the start of it."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// Help is the long help.
func (inspectCmd) Help() string {
	return `FILE|DIR|KEY is an attached file, a mounted image, or an object's key or the
start of it. Of an image of several layers, the message has their keys. The
command reads the cache itself, with or without a running instance; what a
running one has fetched in the last seconds may not be on record yet.

  # lacuna inspect 4075bd
  object:    4075bd9263c86deda7e1e3bef90fd6e1b0533a12dc1aa72235a11d4e60c95af2
  present:   1501560832 bytes (31.8%) in 17 ranges
  ...

EXIT STATUS
  0  ok
  1  no such object, no cache, or another error
  2  wrong usage
  4  the object is damaged and cannot be shown`
}

// barWidth is the width of the presence bar in characters.
const barWidth = 64

// Run is the verb.
func (c *inspectCmd) Run(a *app) (err error) {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	root, err := openReadOnly(cfg.Root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	ids, err := find(root, c.Object)
	if err != nil {
		return err
	}
	if len(ids) != 1 {
		return severalObjects(c.Object, ids)
	}
	object, err := root.Object(ids[0])
	if err != nil {
		return err
	}
	in, err := object.Inspect()
	meta := object.Meta()
	if err := errors.Join(err, object.Close()); err != nil {
		return err
	}
	if parts, err := daemon.PartsOf(root.Dir(), meta); err == nil && parts != nil {
		in.Parts = slices.ContainsFunc(*parts, func(p cache.Part) bool { return p.Digest != nil })
	}
	in.Source = daemon.RedactSource(in.Source)
	if c.JSON {
		return a.printJSON(in)
	}
	width := 0
	if f, ok := a.stdout.(*os.File); ok && isTerminal(f) {
		width = barWidth
	}
	// For people: its name, not the JSON that describes it.
	in.Source = json.RawMessage(daemon.SourceName(in.Source))
	return in.Print(a.stdout, width)
}

// openReadOnly opens the cache that must be there.
func openReadOnly(dir string) (*cache.Root, error) {
	root, err := cache.OpenRootReadOnly(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &control.Error{
			Message: fmt.Sprintf("open cache root %s: there is no cache", dir),
			Hint:    "name it with --root DIR", Exit: control.ExitError,
		}
	}
	return root, err
}

// severalObjects is for inspect, which shows one.
func severalObjects(name string, ids []ondemand.ObjectID) error {
	var keys []string
	for _, id := range ids {
		keys = append(keys, id.Short())
	}
	hint := "inspect one of them: " + strings.Join(keys, ", ")
	if len(keys) == 0 {
		hint = "it is all in its metadata: there is nothing to fetch"
	}
	return &control.Error{Message: fmt.Sprintf("inspect %s: it has %s", name, count(len(ids), "object")), Hint: hint, Exit: control.ExitError}
}

// find takes a path where something is attached or mounted, or the start of a key.
func find(root *cache.Root, name string) ([]ondemand.ObjectID, error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	if ids, found, err := daemon.ObjectsAt(root.Dir(), path); err != nil || found {
		return ids, err
	}
	id, err := root.Find(name)
	return []ondemand.ObjectID{id}, err
}

// checkCmd proves presence against the data.
type checkCmd struct {
	Objects []string `arg:"" optional:"" name:"FILE|DIR|KEY" help:"Attached files, mounts, or keys; default: every object."`
	Verify  bool     `help:"Compare the bytes too: with the digest where one is known, else with the source."`
	Repair  bool     `help:"Forget what is wrong, so that it is fetched again. Needs the cache for itself."`
	JSON    bool     `name:"json" help:"Print JSON."`
}

// Help is the long help.
func (checkCmd) Help() string {
	return `FILE|DIR|KEY are attached files, where something is mounted, or keys; without
any, all objects are checked. A block that is recorded as present, and is a hole
in the data, is corrupt. --verify compares the bytes as well: with the digest
where one is known, else with the source; a layer of an image with the digests
of its chunks, as far as chunks are wholly there. Of layers that are read by a
SOCI index, which has digests of compressed bytes only, and of files without a
digest the line says "unverified", which is no error. --repair forgets what is
wrong, so that it is fetched again, and removes what was made for objects that
are gone; it needs the cache for itself.

  # lacuna check
  4075bd9263c8  ok       1.4 GiB of 4.4 GiB present  /mnt/big.iso
  # lacuna check --verify --repair 4075

EXIT STATUS
  0  all is right
  1  no such object, no cache, or another error
  2  wrong usage
  4  something is corrupt, or was before --repair
  5  --verify: the source cannot be reached, or has changed
  6  --repair: an instance has the cache`
}

// maxRanges is how many ranges are printed of an object.
const maxRanges = 8

// Run is the verb.
func (c *checkCmd) Run(a *app) (err error) {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	root, err := openReadOnly(cfg.Root)
	if err == nil && c.Repair {
		err = root.Close()
		if err == nil {
			root, err = cache.OpenRoot(cfg.Root, cache.RootOptions{AllowAnyFilesystem: true})
		}
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	ids, err := c.choose(root)
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	names, err := daemon.NamesOf(cfg.Root)
	if err != nil {
		a.notes([]string{strings.ReplaceAll(err.Error(), "\n", "; ")})
	}
	reports, corrupt, unverifiable, failed := []checkedObject{}, 0, 0, []error(nil)
	for _, id := range ids {
		rep, err := c.one(ctx, a, cfg, root, id)
		if name := names[id]; name != "" {
			rep.Name = name
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("check %s: %w", strings.TrimRight(id.Short()+", "+rep.Name, ", "), err))
			if ctx.Err() != nil {
				break
			}
			continue // a source that is gone must not hide what the others have
		}
		if foundCorrupt(rep.Report) {
			corrupt++
		} else if rep.Unverifiable {
			unverifiable++
		}
		reports = append(reports, rep)
	}
	if err := c.print(a, reports); err != nil {
		return err
	}
	if unverifiable > 0 {
		a.notes([]string{fmt.Sprintf("%d of %s cannot be verified", unverifiable, count(len(ids), "object"))})
	}
	if len(c.Objects) == 0 && ctx.Err() == nil {
		c.orphans(a, root)
	}
	if corrupt > 0 {
		for _, err := range failed {
			a.fail(err)
		}
		return corruptError(corrupt, len(ids), c)
	}
	return errors.Join(failed...)
}

// orphans notes what was made for objects that are gone, or removes it. That it is
// there is nothing wrong, and neither is not to know.
func (c *checkCmd) orphans(a *app, root *cache.Root) {
	var paths []string
	var err error
	text := "%s made for objects that are gone; --repair removes them"
	if c.Repair {
		paths, err = daemon.RemoveOrphans(root)
		text = "removed %s made for objects that are gone"
	} else {
		paths, err = daemon.Orphans(root)
	}
	if err != nil {
		a.notes([]string{err.Error()})
	}
	if len(paths) > 0 {
		a.notes([]string{fmt.Sprintf(text, count(len(paths), "file"))})
	}
}

func corruptError(n, of int, c *checkCmd) error {
	verb, again := "are", "lacuna check --repair"
	if c.Verify { // without it other bytes are not found, and not forgotten
		again = "lacuna check --verify --repair"
	}
	hint := "`" + again + "` forgets what is wrong, and it is fetched again"
	if c.Repair {
		verb, hint = "were", "what was wrong is forgotten and will be fetched again"
	}
	if n == 1 {
		verb = map[string]string{"are": "is", "were": "was"}[verb]
	}
	return &control.Error{Message: fmt.Sprintf("%d of %d objects %s corrupt", n, of, verb), Hint: hint, Exit: control.ExitCorrupt}
}

func (c *checkCmd) choose(root *cache.Root) (ids []ondemand.ObjectID, err error) {
	if len(c.Objects) == 0 {
		return root.List()
	}
	for _, name := range c.Objects {
		some, err := find(root, name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, some...)
	}
	return ids, nil
}

// checkedObject is what check tells of an object.
type checkedObject struct {
	cache.Report
	// Name is what it is of: where that is mounted or attached, or its source.
	Name string `json:"name,omitempty"`
}

// one checks one object.
func (c *checkCmd) one(ctx context.Context, a *app, cfg config.Config, root *cache.Root, id ondemand.ObjectID) (rep checkedObject, err error) {
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
	rep.Name = daemon.SourceName(meta.Source)
	if c.Verify {
		if opt.Parts, err = daemon.PartsOf(root.Dir(), meta); err != nil {
			return rep, err
		}
	}
	if c.Verify && opt.Parts == nil && !(meta.SHA256 != "" && object.Complete()) {
		blob, done, err := daemon.SourceOf(daemon.Settings{Config: cfg, Version: version, Proxy: http.ProxyFromEnvironment}, meta.Source)
		if err != nil {
			return rep, err
		}
		defer func() { err = errors.Join(err, blob.Close(), done()) }()
		opt.Verify = func(ctx context.Context, off, n int64) (io.ReadCloser, error) { return blob.ReadRange(ctx, off, n) }
	}
	rep.Report, err = object.Check(ctx, opt)
	hasDigest := func(p cache.Part) bool { return p.Digest != nil }
	rep.Unverifiable = opt.Parts != nil && rep.Present > 0 && !slices.ContainsFunc(*opt.Parts, hasDigest)
	return rep, err
}

func (c *checkCmd) print(a *app, reports []checkedObject) error {
	if c.JSON {
		return a.printJSON(reports)
	}
	for _, r := range reports {
		if err := a.print("%s", reportText(r)); err != nil {
			return err
		}
	}
	return nil
}

// foundCorrupt tells whether an object was corrupt, be it right again by now.
func foundCorrupt(r cache.Report) bool {
	return r.Corrupt() || len(r.Recovered.Holes) > 0 || r.Recovered.Reset != ""
}

func reportText(r checkedObject) string {
	var b strings.Builder
	state, compared := "ok", ""
	if foundCorrupt(r.Report) {
		state = "CORRUPT"
	} else if r.Unverifiable {
		state = "unverified"
	}
	switch {
	case r.Unverifiable:
		compared = ", cannot be verified: there is no digest of its bytes"
	case r.Verified && r.Present > 0:
		compared = ", bytes verified"
	case r.Compared > 0 && !r.Corrupt():
		compared = ", " + sizeText(r.Compared) + " of that verified"
	}
	line := fmt.Sprintf("%.12s  %-7s  %s of %s present%s  %s", r.ID, state, sizeText(r.Present), sizeText(r.Size), compared, pathText(r.Name))
	b.WriteString(strings.TrimRight(line, " ") + "\n")
	list := func(what string, ranges []ondemand.Range) {
		if len(ranges) == 0 {
			return
		}
		fmt.Fprintf(&b, "  %s:", what)
		for n, bad := range ranges {
			if n == maxRanges {
				fmt.Fprintf(&b, " and %d more", len(ranges)-n)
				break
			}
			fmt.Fprintf(&b, " %v", bad)
		}
		b.WriteByte('\n')
	}
	list("recorded as present, and holes", slices.Concat(r.Holes, r.Recovered.Holes))
	list("other bytes than the source", r.Mismatches)
	if r.Recovered.Reset != "" {
		fmt.Fprintf(&b, "  nothing counts as present: %s\n", r.Recovered.Reset)
	}
	return b.String()
}
