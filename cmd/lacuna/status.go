package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/features"
)

// statusCmd shows the state of the running instance.
type statusCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Help is the long help.
func (statusCmd) Help() string {
	return `EXIT STATUS
  0 ok  1 no instance runs  2 usage`
}

// Run is the verb.
func (c *statusCmd) Run(a *app) error {
	ctx, stop := interruptible()
	defer stop()
	client, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(s)
	}
	return a.print("%s", statusText(s))
}

func statusText(s control.Status) string {
	var b strings.Builder
	kind := "daemon"
	if s.Foreground {
		kind = "in the foreground"
	}
	fmt.Fprintf(&b, "lacuna %s, %s, keeper %d, worker %d, up %s\n", s.Version, kind, s.KeeperPID, s.WorkerPID,
		time.Since(s.Started).Round(time.Second))
	fmt.Fprintf(&b, "cache      %s\n", s.Root)
	r := s.Requests
	fmt.Fprintf(&b, "misses     %d pending, %d filled, %d failed, %d expired, %d flushed, %d shared a fill\n",
		r.Pending, r.Filled, r.Failed, r.Expired, r.Flushed, r.Coalesced)
	if r.Filled > 0 {
		fmt.Fprintf(&b, "latency    p50 %s, p99 %s\n", r.P50.Round(time.Microsecond), r.P99.Round(time.Microsecond))
	}
	for _, f := range s.Attached {
		attachedText(&b, f)
	}
	for _, d := range s.Bound {
		daemon := "no daemon connected"
		if d.DaemonPID != 0 {
			daemon = fmt.Sprintf("daemon %d", d.DaemonPID)
		}
		fmt.Fprintf(&b, "\n%s\n  devnode  %s, %s, %d pending\n  present  %s of %s in %d files\n  reads    %d present, %d missed\n",
			d.Dir, d.Devnode, daemon, d.Pending, sizeText(d.Present), sizeText(d.Size), d.Files, d.Hits, d.Misses)
	}
	for _, u := range s.Unguarded {
		fmt.Fprintf(&b, "\nUNGUARDED from %s to %s: readers may have seen zeros in\n  %s\n",
			u.From.Format(time.RFC3339), u.To.Format(time.RFC3339), strings.Join(u.Files, "\n  "))
		if len(u.Users) > 0 {
			fmt.Fprintf(&b, "  still used by process %s\n", strings.Join(u.Users, ", process "))
		}
	}
	for _, e := range s.Errors {
		fmt.Fprintf(&b, "\nerror: %s\n", e)
	}
	return b.String()
}

func attachedText(b *strings.Builder, f control.Attached) {
	percent := 100.0
	if f.Size > 0 {
		percent = 100 * float64(f.Present) / float64(f.Size)
	}
	fmt.Fprintf(b, "\n%s\n  source   %s\n  object   %.12s\n  present  %s of %s (%.1f%%), verified: %s\n  reads    %d present, %d missed; %s fetched in %d requests\n",
		f.File, f.Source, f.Object, sizeText(f.Present), sizeText(f.Size), percent, f.Verified,
		f.Hits, f.Misses, sizeText(f.Fetched), f.Requests)
	if f.Requests > 0 {
		fmt.Fprintf(b, "  latency  of the source: p50 %s, p99 %s\n", f.SourceP50.Round(time.Microsecond), f.SourceP99.Round(time.Microsecond))
	}
	if !f.Ranges {
		fmt.Fprintf(b, "  note     the server does not serve ranges: downloaded once, in order\n")
	}
	if f.Error != "" {
		fmt.Fprintf(b, "  ERROR    %s\n", f.Error)
	}
}

// featuresCmd shows what the kernel can do.
type featuresCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Help is the long help.
func (featuresCmd) Help() string {
	return `Each feature is tried, on the cache directory where the filesystem matters.

EXIT STATUS
  0 ok  1 error  2 usage`
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
		if err := a.print("%-22s %-8s %s\n", f.Name, f.Answer, f.Reason); err != nil {
			return err
		}
	}
	return nil
}
