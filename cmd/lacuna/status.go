package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/fetch"
)

// statusCmd shows the state of the running instance.
type statusCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Help is the long help.
func (statusCmd) Help() string {
	return `Asks the instance that listens on the control socket what it serves: for each
file, mounted image and layer how much is present, whether it is verified, and
how long readers waited. A layer's file counts as soon as any of it is present,
be it read or fetched beside what was. With --json, times are in nanoseconds,
sizes in bytes.

  # lacuna status
  lacuna v0.1.0, daemon, up 2m10s (keeper 811, worker 812)
  cache     /var/lib/lacuna
  misses    0 waiting, 61 filled, 0 failed
  latency   of a miss: p50 12 ms, p99 48 ms

  /mnt/big.iso
    source    https://example.org/big.iso
    object    4075bd9263c8
    present   1.4 GiB of 4.4 GiB (31.8%)
    verified  no digest is known
    reads     902 present, 61 missed
    fetched   1.4 GiB in 17 requests, first byte after p50 9.2 ms, p99 31 ms

  /mnt/app
    image     registry.example/app:1 (sha256:0a9d1a2b77c3)
    present   8.1 MiB of 93.4 MiB (8.7%), in 981 files
    verified  yes, before it is read
    reads     310 present, 44 missed
    fetched   6.1 MiB in 12 requests
    layer     sha256:5f1e2d3c4b5a  estargz: 8.1 MiB of 93.4 MiB, 44 of 981 files
                310 reads present, 44 missed, fetched 6.1 MiB in 12 requests

EXIT STATUS
  0  ok
  1  no instance runs, or another error
  2  wrong usage`
}

// Run is the verb.
func (c *statusCmd) Run(a *app) error {
	return a.ask(func(ctx context.Context, client *control.Client) error {
		s, err := client.Status(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return a.printJSON(s)
		}
		return a.print("%s", statusText(s, time.Now()))
	})
}

func statusText(s control.Status, now time.Time) string {
	var b strings.Builder
	kind := "daemon"
	if s.Foreground {
		kind = "in the foreground"
	}
	fmt.Fprintf(&b, "lacuna %s, %s, up %s (keeper %d, worker %d)\n", s.Version, kind,
		now.Sub(s.Started).Round(time.Second), s.KeeperPID, s.WorkerPID)
	if s.Stopping {
		fmt.Fprintf(&b, "stopping  once nothing that misses data is in use; `lacuna hydrate` fetches what is missing\n")
	}
	for _, w := range s.Waits {
		fmt.Fprintf(&b, "  waits for %s\n", w)
	}
	if s.WorkerDeaths > 0 {
		fmt.Fprintf(&b, "restarts  %s died, the last one %s ago\n", count(s.WorkerDeaths, "worker"), now.Sub(s.LastDeath).Round(time.Second))
	}
	fmt.Fprintf(&b, "cache     %s\n", s.Root)
	fmt.Fprintf(&b, "misses    %s\n", requestsText(s.Requests))
	if s.Requests.Filled > 0 {
		fmt.Fprintf(&b, "latency   of a miss: %s\n", quantiles(s.Requests.P50, s.Requests.P99))
	}
	if len(s.Attached)+len(s.Mounted)+len(s.Bound)+len(s.Broken) == 0 {
		b.WriteString("\nnothing is attached or mounted\n")
	}
	for _, m := range s.Mounted {
		mountedText(&b, m)
	}
	for _, f := range s.Attached {
		attachedText(&b, f)
	}
	for _, d := range s.Bound {
		boundText(&b, d)
	}
	for _, f := range s.Broken {
		brokenText(&b, f)
	}
	for _, u := range s.Unguarded {
		fmt.Fprintf(&b, "\nUNGUARDED from %s to %s: readers may have seen zeros in\n  %s\n",
			u.From.Format(time.RFC3339), u.To.Format(time.RFC3339), strings.Join(u.Files, "\n  "))
		if len(u.Users) > 0 {
			fmt.Fprintf(&b, "  still used by %s\n", strings.Join(u.Users, ", "))
		}
	}
	if len(s.Errors) > 0 {
		b.WriteString("\nlast errors\n")
	}
	for _, e := range s.Errors {
		fmt.Fprintf(&b, "  %s\n", strings.ReplaceAll(e, "\n", "; "))
	}
	return b.String()
}

// brokenText is what status says of what cannot be served.
func brokenText(b *strings.Builder, f control.Broken) {
	undo := "`lacuna detach` takes it down"
	switch {
	case f.Leaving:
		undo = "it is unmounted, and still in use by " + f.Users
	case f.Kind == "mount":
		undo = "`lacuna umount` takes it down"
	}
	fmt.Fprintf(b, "\n%s\n  BROKEN    what is missing is denied, %s\n  reason    %s\n",
		pathText(f.Path), undo, strings.ReplaceAll(f.Reason, "\n", "; "))
}

// requestsText leaves out what is rare and did not happen.
func requestsText(r control.Requests) string {
	text := fmt.Sprintf("%d waiting, %d filled, %d failed", r.Pending, r.Filled, r.Failed)
	for _, rare := range []struct {
		n    uint64
		what string
	}{{r.Expired, "took too long"}, {r.Flushed, "flushed"}, {r.Coalesced, "shared a fill"}} {
		if rare.n > 0 {
			text += fmt.Sprintf(", %d %s", rare.n, rare.what)
		}
	}
	return text
}

func quantiles(p50, p99 time.Duration) string {
	return fmt.Sprintf("p50 %s, p99 %s", durationText(p50), durationText(p99))
}

func attachedText(b *strings.Builder, f control.Attached) {
	verified := map[string]string{
		"yes": "yes, by its digest", "pending": "not yet: the digest is checked once everything is here",
		"unverifiable": "no digest is known",
	}[f.Verified]
	// Errors cross the socket as text.
	if f.Verified == "pending" && strings.Contains(f.Error, fetch.ErrDigest.Error()) {
		verified = "no: what came does not have the digest"
	}
	fmt.Fprintf(b, "\n%s\n  source    %s\n  object    %.12s\n  present   %s of %s (%s)\n  verified  %s\n  reads     %d present, %d missed\n",
		pathText(f.File), pathText(f.Source), f.Object, sizeText(f.Present), sizeText(f.Size), percentText(f.Present, f.Size), verified, f.Hits, f.Misses)
	if f.Requests > 0 {
		fmt.Fprintf(b, "  fetched   %s in %s", sizeText(f.Fetched), count(f.Requests, "request"))
		if f.SourceP50 > 0 {
			fmt.Fprintf(b, ", first byte after %s", quantiles(f.SourceP50, f.SourceP99))
		}
		b.WriteByte('\n')
	}
	if f.Leaving {
		fmt.Fprintf(b, "  note      it is detached, and still in use by %s\n", f.Users)
	}
	if !f.Ranges {
		b.WriteString("  note      the server does not serve ranges: downloaded once, in order\n")
	}
	if f.Error != "" {
		fmt.Fprintf(b, "  error     %s\n", strings.ReplaceAll(f.Error, "\n", "; "))
	}
}

func boundText(b *strings.Builder, d control.Bound) {
	by := "no daemon is connected"
	if d.DaemonPID != 0 {
		by = fmt.Sprintf("daemon %d", d.DaemonPID)
	}
	fmt.Fprintf(b, "\n%s\n  devnode   %s, %s, %d waiting\n  present   %s of %s (%s), in %s\n  reads     %d present, %d missed\n",
		pathText(d.Dir), pathText(d.Devnode), by, d.Pending, sizeText(d.Present), sizeText(d.Size), percentText(d.Present, d.Size),
		count(d.Files, "file"), d.Hits, d.Misses)
}

// featuresCmd shows what the kernel can do.
type featuresCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Help is the long help.
func (featuresCmd) Help() string {
	return `Each feature is tried; where the filesystem matters, on that of the cache
directory. "unknown" is what only root can find out. Nothing is left behind.

  # lacuna features
  fanotify-pre-content  yes
  mount-api             yes
  erofs-file-mounts     yes

EXIT STATUS
  0  the list was printed, whatever it says
  1  error
  2  wrong usage`
}

// Run is the verb.
func (c *featuresCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	var p features.Prober
	list := p.List(cfg.Root)
	if c.JSON {
		return a.printJSON(list)
	}
	for _, f := range list {
		line := fmt.Sprintf("%-21s %-8s %s", f.Name, f.Answer, strings.TrimPrefix(f.Reason, f.Name+": "))
		if err := a.print("%s\n", strings.TrimRight(line, " ")); err != nil {
			return err
		}
	}
	return nil
}
