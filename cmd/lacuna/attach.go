package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
	"github.com/lacunafs/lacuna/internal/source"
)

// attachCmd makes a source appear as a file.
type attachCmd struct {
	Source     string `arg:"" name:"URL|PATH" help:"http:// or https:// URL, or the path of a local file."`
	File       string `arg:"" name:"FILE" help:"Where it appears: a name that is free, or an empty file."`
	SHA256     string `name:"sha256" placeholder:"HEX" help:"Digest that the whole must have; checked once everything is here."`
	Foreground bool   `help:"Serve it from this command, also where a daemon listens, beside which it needs another --root."`
}

// Help is the long help.
func (attachCmd) Help() string {
	return `URL|PATH is an http:// or https:// URL, or the path of a local file. FILE is
where it appears: a name that is free in a directory that exists, or an empty
file, which is covered and comes back. FILE has its full size at once and is
read-only. What is read is fetched, and stays in the cache, also for the next
attach.

Where a daemon listens, it serves FILE, and the command returns. Otherwise the
command serves it itself: it prints "ready" when reads may begin, runs until
SIGINT or SIGTERM, and takes FILE away again.

User and password, or a signature, go into the URL; messages do not show them.
Data without a digest cannot be verified: --sha256 gives one.

  # lacuna attach https://example.org/big.iso /mnt/big.iso
  ready

EXIT STATUS
  0  FILE is attached; in the foreground: it was, until a signal
  1  error, such as a full disk
  2  wrong usage: FILE is not empty, lies in the cache, has no directory
  3  not supported by this kernel or the cache's filesystem, or not root
  4  what the cache has of it is corrupt
  5  the source cannot be reached, or does not give the file
  6  FILE is attached already, or another instance has the cache`
}

// Run is the verb.
func (c *attachCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
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
	client, err := a.dialUnless(ctx, c.Foreground, cfg)
	if err != nil {
		return err
	}
	told := a.tellLater("asking " + source.Redact(c.Source))
	defer told()
	if client == nil {
		return a.foreground(daemon.Settings{Config: cfg, Attach: &q}, told)
	}
	defer client.Close()
	reply, err := client.Attach(ctx, q)
	told()
	if err != nil {
		return err
	}
	a.notes(reply.Notes)
	return a.print("attached %s (%s)\n", pathText(q.File), sizeText(reply.Size))
}

// check finds arguments that cannot be meant.
func (c *attachCmd) check() error {
	if err := given("attach", c.Source, c.File); err != nil {
		return err
	}
	if strings.Contains(c.File, "://") && !strings.Contains(c.Source, "://") {
		return &control.Error{
			Message: fmt.Sprintf("attach: FILE is a URL: %s", source.Redact(c.File)),
			Hint:    "the source comes first: lacuna attach URL FILE", Exit: control.ExitUsage,
		}
	}
	return nil
}

// given refuses empty arguments: they are variables that are not set, and would
// stand for the working directory.
func given(verb string, args ...string) error {
	if slices.Contains(args, "") {
		return &control.Error{Message: verb + ": an argument is empty", Hint: "see `lacuna " + verb + " --help`", Exit: control.ExitUsage}
	}
	return nil
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
	Files   []string `arg:"" name:"FILE|DIR" help:"The attached files, or bound directories."`
	Hydrate bool     `help:"Fetch everything first, and leave FILE as an ordinary file."`
}

// Help is the long help.
func (detachCmd) Help() string {
	return `FILE|DIR is an attached file or a bound directory. What was fetched stays in
the cache for the next attach of the same source. A file that a process has
open stays attached, and a directory stays bound while a process other than its
daemon has an incomplete file of it open. An empty file that was covered is
there again; otherwise the name is free. The files of a bound directory are
ordinary sparse files afterwards, and their holes read as zeros. Of several,
each is tried, and the exit status is that of the first error.

  # lacuna detach --hydrate /mnt/big.iso
  # ls -l /mnt/big.iso
  -rw-r--r-- 1 root root 4700372992 May  9 12:00 /mnt/big.iso

EXIT STATUS
  0  it is detached
  1  it is not attached, or no instance runs, or another error
  2  wrong usage
  4  --hydrate: the data does not have the digest of --sha256
  5  --hydrate: the source cannot be reached, or has changed
  6  a process has it open; the message names it`
}

// Run is the verb.
func (c *detachCmd) Run(a *app) error {
	if err := given("detach", c.Files...); err != nil {
		return err
	}
	return a.askEach(c.Files, func(ctx context.Context, client *control.Client, path string) error {
		if c.Hydrate {
			if err := a.hydrate(ctx, client, path); err != nil {
				return err
			}
		}
		return client.Detach(ctx, control.DetachRequest{Path: path, Hydrate: c.Hydrate})
	})
}

// askEach has do ask the instance for each path, which it makes absolute. Where one
// of several fails the others are tried all the same.
func (a *app) askEach(paths []string, do func(ctx context.Context, client *control.Client, path string) error) error {
	return a.ask(func(ctx context.Context, client *control.Client) error {
		first, hint := 0, ""
		for _, p := range paths {
			path, err := filepath.Abs(p)
			if err != nil {
				err = fmt.Errorf("find %s: %w", p, err)
			} else {
				err = do(ctx, client, path)
			}
			if err != nil && (len(paths) == 1 || ctx.Err() != nil) {
				return err
			}
			if err != nil {
				var status int
				status, hint = a.failAfter(hint, err)
				first = cmp.Or(first, status)
			}
		}
		if first > 0 {
			return errSilent(first)
		}
		return nil
	})
}

// ask connects to the instance, which must be there, and has do talk to it.
func (a *app) ask(do func(context.Context, *control.Client) error) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	client, err := a.dial(ctx, cfg)
	if errors.Is(err, control.ErrNotRunning) {
		return nobodyListens(cfg, err)
	}
	if err != nil {
		return err
	}
	defer client.Close()
	return do(ctx, client)
}

// bindCmd serves a directory to an external daemon.
type bindCmd struct {
	Dir        string `arg:"" name:"DIR" help:"Directory of sparse files of the right sizes."`
	Devnode    string `required:"" placeholder:"SOCKET" help:"Socket to make, for the daemon that fills the files."`
	Foreground bool   `help:"Serve it from this command, also where a daemon listens, beside which it needs another --root."`
}

// Help is the long help.
func (bindCmd) Help() string {
	return `DIR holds sparse files of the right sizes. Whoever reads a hole of one sleeps
until the daemon that has opened the devnode SOCKET has filled it. While no
daemon is connected, reads of holes fail with an input/output error.
docs/devnode.md has the protocol, examples/ has daemons in Python, shell and
Go.

Where a lacuna daemon listens, it serves DIR, and the command returns.
Otherwise the command serves it itself: it prints "ready" when reads may begin,
and runs until SIGINT or SIGTERM. Then the files are ordinary sparse files
again, and their holes read as zeros.

  # truncate -s 4G /srv/blobs/model.bin
  # lacuna bind /srv/blobs --devnode /run/blobs.sock
  ready

EXIT STATUS
  0  DIR is bound; in the foreground: it was, until a signal
  1  error
  2  wrong usage: DIR is not a directory, or SOCKET has none
  3  not supported by this kernel or DIR's filesystem, or not root
  6  DIR is bound already, SOCKET is in use, or another instance has the cache`
}

// Run is the verb.
func (c *bindCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	if err := given("bind", c.Dir, c.Devnode); err != nil {
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
	client, err := a.dialUnless(ctx, c.Foreground, cfg)
	if err != nil {
		return err
	}
	if client == nil {
		return a.foreground(daemon.Settings{Config: cfg, Bind: &q}, func() {})
	}
	defer client.Close()
	reply, err := client.Bind(ctx, q)
	if err != nil {
		return err
	}
	a.notes(reply.Notes)
	return a.print("bound %s (%s)\n", pathText(q.Dir), count(reply.Files, "file"))
}

// hydrateCmd fetches everything of a file or a mount.
type hydrateCmd struct {
	File string `arg:"" name:"FILE|DIR" help:"The attached file, or where an image or a manifest is mounted."`
}

// Help is the long help.
func (hydrateCmd) Help() string {
	return `FILE is an attached file, DIR where an image or a manifest is mounted. The
command returns when all of its data is in the cache, durable, and verified
where a digest is known; it is read without the network then. Readers need not
wait for it. When it is interrupted, what was fetched stays, and the same
command goes on. Of a manifest, files that cannot be had are named, and the
others are fetched.

  # lacuna hydrate /mnt/big.iso
  big.iso [#########.....................]  31% 1.4 of 4.4 GiB, 210 MiB/s

EXIT STATUS
  0  everything is there
  1  nothing is attached or mounted there, or no instance runs, or another error
  2  wrong usage
  4  the data does not have the digest that it must have
  5  the source cannot be reached, or has changed`
}

// Run is the verb.
func (c *hydrateCmd) Run(a *app) error {
	if err := given("hydrate", c.File); err != nil {
		return err
	}
	path, err := filepath.Abs(c.File)
	if err != nil {
		return fmt.Errorf("find %s: %w", c.File, err)
	}
	return a.ask(func(ctx context.Context, client *control.Client) error { return a.hydrate(ctx, client, path) })
}

func (a *app) hydrate(ctx context.Context, client *control.Client, path string) error {
	p := newProgress(a.stderr)
	defer p.end()
	err := client.Hydrate(ctx, control.HydrateRequest{File: path}, func(now control.Progress) {
		p.show(filepath.Base(path), now.Present, now.Total)
	})
	if errors.Is(err, context.Canceled) {
		return &control.Error{
			Message: fmt.Sprintf("hydrate %s: interrupted", path),
			Hint:    "what was fetched stays in the cache: the same command goes on", Exit: control.ExitError,
		}
	}
	return err
}
