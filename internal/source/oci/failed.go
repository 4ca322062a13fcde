package oci

import (
	"fmt"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
)

// allFailed is what each of several hosts answered. The registry itself
// says which error it is.
type allFailed struct {
	names []string
	errs  []error
	own   int // which of them is of the registry itself, or comes next to it
	place int // of that one in hosts.toml
}

// add adds the error of the host of the given name and place in hosts.toml.
func (e *allFailed) add(name string, place int, err error) {
	if place >= e.place {
		e.own, e.place = len(e.errs), place
	}
	e.names, e.errs = append(e.names, name), append(e.errs, err)
}

// err is e, or the one error.
func (e *allFailed) err() error {
	switch len(e.errs) {
	case 0:
		return fmt.Errorf("%w: hosts.toml has no host for this", source.ErrNotFound)
	case 1:
		return e.errs[0]
	}
	return e
}

func (e *allFailed) Error() string {
	var b strings.Builder
	for i, err := range e.errs {
		if i > 0 {
			b.WriteString("; ")
		}
		text := err.Error()
		if !strings.Contains(text, e.names[i]) {
			b.WriteString(e.names[i] + ": ")
		}
		b.WriteString(text)
	}
	return b.String()
}

// Unwrap is the registry's own error.
func (e *allFailed) Unwrap() error { return e.errs[e.own] }

// Temporary is true where one of the hosts may do better later.
func (e *allFailed) Temporary() bool {
	for _, err := range e.errs {
		if source.Temporary(err) {
			return true
		}
	}
	return false
}

// RetryDelay is the shortest of those that may do better later.
func (e *allFailed) RetryDelay() time.Duration {
	shortest := time.Duration(-1)
	for _, err := range e.errs {
		if d := source.RetryDelay(err); source.Temporary(err) && (shortest < 0 || d < shortest) {
			shortest = d
		}
	}
	return max(shortest, 0)
}
