package main

import (
	"fmt"
	"time"
)

// say prints one line.
func (d *demo) say(format string, args ...any) error {
	_, err := fmt.Fprintf(d.out, format+"\n", args...)
	return err
}

// mib prints bytes for people.
func mib(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	return number(n) + " MiB"
}

// number is n bytes in MiB, without the unit.
func number(n int64) string {
	if v := float64(n) / (1 << 20); v < 99.95 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", float64(n)/(1<<20))
}

// seconds prints a time for people.
func seconds(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
