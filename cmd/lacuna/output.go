package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// interruptible is a context that ends with SIGINT or SIGTERM.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
}

// sizeText prints bytes for people.
func sizeText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, name := float64(n)/unit, 0
	for value >= unit && name < 4 {
		value /= unit
		name++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[name])
}

// progress shows how far something is, on a terminal, once it takes over a second.
type progress struct {
	out     io.Writer
	started time.Time
	shown   time.Time
	first   int64
	wrote   bool
}

func newProgress(out io.Writer) *progress {
	p := &progress{started: time.Now(), first: -1}
	if f, ok := out.(*os.File); ok && isTerminal(f) {
		p.out = out
	}
	return p
}

// show draws a line over the one before.
func (p *progress) show(what string, done, total int64) {
	now := time.Now()
	if p.first < 0 {
		p.first = done
	}
	if p.out == nil || total == 0 || now.Sub(p.started) < time.Second || now.Sub(p.shown) < 100*time.Millisecond {
		return
	}
	p.shown, p.wrote = now, true
	const width = 30
	filled := int(width * done / total)
	rate := float64(done-p.first) / now.Sub(p.started).Seconds()
	fmt.Fprintf(p.out, "\r%s [%s%s] %3d%% %s of %s, %s/s\x1b[K", what,
		strings.Repeat("#", filled), strings.Repeat(".", width-filled), 100*done/total,
		sizeText(done), sizeText(total), sizeText(int64(rate)))
}

func (p *progress) end() {
	if p.wrote {
		fmt.Fprintln(p.out)
	}
}
