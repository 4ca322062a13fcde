package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/lacunafs/lacuna/internal/sys"
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
	for value >= unit-0.05 && name < 4 { // 1024.0 would be rounded up to
		value /= unit
		name++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[name])
}

// pathText is the path, quoted where it would spoil what is printed.
func pathText(path string) string {
	if strings.ContainsFunc(path, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(path)
	}
	return path
}

// count is "1 file" or "2 files".
func count[N int | int64 | uint64](n N, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// durationText prints a time for people, with two or three digits.
func durationText(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// percentText is part of whole; 100% only when it is all.
func percentText(part, whole int64) string {
	if part >= whole {
		return "100%"
	}
	return fmt.Sprintf("%.1f%%", min(100*float64(part)/float64(whole), 99.9))
}

// How long a command is silent: on a terminal for a second, elsewhere, as in a
// log, for longer, and then from time to time.
const (
	silentTerminal = time.Second
	silentElse     = 5 * time.Second
	silentAgain    = 20 * time.Second
)

// tellLater tells what a command waits for once it has waited for a while, and again
// from time to time. The function that it returns ends
// the waiting.
func (a *app) tellLater(what string) func() { return a.tellWaiting(what, "") }

// tellWaiting is tellLater, with what may take so long.
func (a *app) tellWaiting(what, long string) func() {
	f, ok := a.stderr.(*os.File)
	if !ok {
		return func() {}
	}
	first := silentElse
	if isTerminal(f) {
		first = silentTerminal
	}
	began, said := time.Now(), false
	var mu sync.Mutex
	var timer *time.Timer // nil: nobody waits any more
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(first, func() {
		mu.Lock()
		defer mu.Unlock()
		if timer == nil {
			return
		}
		fmt.Fprintln(f, waitingText(what, long, time.Since(began), said))
		said = true
		timer.Reset(silentAgain)
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		if timer != nil {
			timer.Stop()
			timer = nil
		}
	}
}

// waitingText is a line of tellLater.
func waitingText(what, long string, waited time.Duration, again bool) string {
	if !again {
		return what + " ..."
	}
	return fmt.Sprintf("%s ... %s%s", what, waited.Round(time.Second), long)
}

// isTerminal tells whether f is one.
func isTerminal(f *os.File) bool { return sys.IsTerminal(int(f.Fd())) }

// progress shows how far something is: on a terminal in a line that moves, once it
// takes over a second, elsewhere in a line from time to time.
type progress struct {
	out     io.Writer
	lines   bool // out is no terminal
	started time.Time
	shown   time.Time
	first   int64
	wrote   bool
	whole   bool // the line of the end is shown
}

func newProgress(out io.Writer) *progress {
	p := &progress{started: time.Now(), first: -1}
	if f, ok := out.(*os.File); ok {
		p.out, p.lines = out, !isTerminal(f)
	}
	return p
}

// show draws a line over the one before.
func (p *progress) show(what string, done, total int64) {
	now := time.Now()
	if p.first < 0 {
		p.first = done
	}
	first, next := silentTerminal, 100*time.Millisecond
	if p.lines {
		first, next = silentElse, silentAgain
	}
	// Who was told of a part is told of the end.
	ends := !p.shown.IsZero() && done >= total && !p.whole
	if p.out == nil || total == 0 || now.Sub(p.started) < first || now.Sub(p.shown) < next && !ends {
		return
	}
	p.shown, p.whole = now, done >= total
	if p.lines {
		fmt.Fprintf(p.out, "%s: %d%%, %s of %s\n", what, 100*done/total, sizeText(done), sizeText(total))
		return
	}
	p.wrote = true
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
