package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
)

// attachCmd makes a source appear as a file.
type attachCmd struct {
	Source     string `arg:"" name:"url|path" help:"http:// or https:// URL, or the path of a local file."`
	File       string `arg:"" help:"Where it appears: a name that is free, or an empty file."`
	SHA256     string `name:"sha256" placeholder:"HEX" help:"Digest that the whole must have; checked once everything is here."`
	Foreground bool   `help:"Serve it from this command, also where a daemon listens."`
}

// Help is the long help.
func (attachCmd) Help() string {
	return `FILE appears with its full size at once, read-only. What is read is fetched, and
stays in the cache. Where a daemon listens, it serves FILE, and the command
returns. Otherwise the command itself serves it: it prints "ready" when reads may
begin, runs until SIGINT or SIGTERM, and then takes FILE away again.

  # lacuna attach https://example.org/big.iso /mnt/big.iso
  ready

EXIT STATUS
  0 ok  1 error  2 usage  3 not supported here  4 cache is corrupt
  5 source cannot be reached or does not give the file  6 FILE or cache in use`
}

// Run is the verb.
func (c *attachCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	q := control.AttachRequest{Source: c.Source, SHA256: c.SHA256}
	if q.File, err = filepath.Abs(c.File); err != nil {
		return fmt.Errorf("find %s: %w", c.File, err)
	}
	if !strings.Contains(c.Source, "://") {
		if q.Source, err = filepath.Abs(c.Source); err != nil {
			return fmt.Errorf("find %s: %w", c.Source, err)
		}
	}
	ctx, stop := interruptible()
	defer stop()
	client, err := a.dialUnless(ctx, c.Foreground, cfg.Socket)
	if err != nil {
		return err
	}
	if client == nil {
		return a.foreground(daemon.Settings{Config: cfg, Attach: &q})
	}
	defer client.Close()
	reply, err := client.Attach(ctx, q)
	if err != nil {
		return err
	}
	a.notes(reply.Notes)
	return a.print("attached %s (%s)\n", q.File, sizeText(reply.Size))
}

// dialUnless connects to the daemon; nil where none listens, or where the
// command is to do the work itself.
func (a *app) dialUnless(ctx context.Context, foreground bool, socket string) (*control.Client, error) {
	if foreground {
		return nil, nil
	}
	client, err := control.Dial(ctx, socket)
	if errors.Is(err, control.ErrNotRunning) {
		return nil, nil
	}
	return client, err
}

func (a *app) notes(notes []string) {
	for _, n := range notes {
		fmt.Fprintf(a.stderr, "note: %s\n", n)
	}
}

func (a *app) print(format string, args ...any) error {
	if _, err := fmt.Fprintf(a.stdout, format, args...); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	return nil
}

// detachCmd undoes attach and bind.
type detachCmd struct {
	File    string `arg:"" help:"The attached file, or the bound directory."`
	Hydrate bool   `help:"Fetch everything first, and leave FILE as an ordinary file."`
}

// Help is the long help.
func (detachCmd) Help() string {
	return `The data that was fetched stays in the cache, for the next attach of the same
source. A file that is open somewhere stays attached.

EXIT STATUS
  0 ok  1 error  2 usage  4 digest does not match  5 source cannot be reached
  6 FILE is in use`
}

// Run is the verb.
func (c *detachCmd) Run(a *app) error {
	ctx, stop := interruptible()
	defer stop()
	client, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	path, err := filepath.Abs(c.File)
	if err != nil {
		return fmt.Errorf("find %s: %w", c.File, err)
	}
	if c.Hydrate {
		if err := a.hydrate(ctx, client, path); err != nil {
			return err
		}
	}
	return client.Detach(ctx, control.DetachRequest{Path: path, Hydrate: c.Hydrate})
}

// dial connects to the instance that must be there.
func (a *app) dial(ctx context.Context) (*control.Client, error) {
	cfg, err := a.config()
	if err != nil {
		return nil, err
	}
	return control.Dial(ctx, cfg.Socket)
}

// bindCmd serves a directory to an external daemon.
type bindCmd struct {
	Dir        string `arg:"" help:"Directory of sparse files of the right sizes."`
	Devnode    string `required:"" placeholder:"SOCKET" help:"Socket to make, for the daemon that fills the files."`
	Foreground bool   `help:"Serve it from this command, also where a daemon listens."`
}

// Help is the long help.
func (bindCmd) Help() string {
	return `Whoever reads a hole of a file in DIR sleeps until the daemon that has opened the
devnode has filled it. docs/devnode.md has the protocol; examples/ has daemons.
Reads of holes fail with an input/output error while no daemon is connected.
Where no lacuna daemon listens, the command itself serves DIR: it prints "ready"
when reads may begin, and runs until SIGINT or SIGTERM. Then the files are
ordinary sparse files again, whose holes read as zeros.

EXIT STATUS
  0 ok  1 error  2 usage  3 not supported here  6 DIR, socket or cache in use`
}

// Run is the verb.
func (c *bindCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	var q control.BindRequest
	if q.Dir, err = filepath.Abs(c.Dir); err != nil {
		return fmt.Errorf("find %s: %w", c.Dir, err)
	}
	if q.Devnode, err = filepath.Abs(c.Devnode); err != nil {
		return fmt.Errorf("find %s: %w", c.Devnode, err)
	}
	ctx, stop := interruptible()
	defer stop()
	client, err := a.dialUnless(ctx, c.Foreground, cfg.Socket)
	if err != nil {
		return err
	}
	if client == nil {
		return a.foreground(daemon.Settings{Config: cfg, Bind: &q})
	}
	defer client.Close()
	reply, err := client.Bind(ctx, q)
	if err != nil {
		return err
	}
	a.notes(reply.Notes)
	return a.print("bound %s (%d files)\n", q.Dir, reply.Files)
}

// hydrateCmd fetches everything of a file.
type hydrateCmd struct {
	File string `arg:"" help:"The attached file."`
}

// Help is the long help.
func (hydrateCmd) Help() string {
	return `Returns when all data is in the cache, durable, and verified where a digest is
known. Interrupted, it can be called again and goes on.

EXIT STATUS
  0 ok  1 error  2 usage  4 digest does not match  5 source cannot be reached`
}

// Run is the verb.
func (c *hydrateCmd) Run(a *app) error {
	ctx, stop := interruptible()
	defer stop()
	client, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	path, err := filepath.Abs(c.File)
	if err != nil {
		return fmt.Errorf("find %s: %w", c.File, err)
	}
	return a.hydrate(ctx, client, path)
}

func (a *app) hydrate(ctx context.Context, client *control.Client, path string) error {
	p := newProgress(a.stderr)
	defer p.end()
	return client.Hydrate(ctx, control.HydrateRequest{File: path}, func(now control.Progress) {
		p.show(filepath.Base(path), now.Present, now.Total)
	})
}

// isTerminal tells whether f is one.
func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
