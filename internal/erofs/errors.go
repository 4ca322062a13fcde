package erofs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Reasons. Test for them with errors.Is.
var (
	// ErrInvalid: the tree that is to be written cannot be said in an image.
	ErrInvalid = errors.New("tree cannot be written")
	// ErrCorrupt: the image contradicts itself or the format.
	ErrCorrupt = errors.New("filesystem image is corrupt")
	// ErrNotSupported: the image has something that this package does not read.
	ErrNotSupported = errors.New("filesystem image is not supported")
)

// EntryError says which entry of a tree an error is about.
type EntryError struct {
	// Path of the entry, "/" for the root.
	Path string
	Err  error
}

func (e *EntryError) Error() string { return fmt.Sprintf("%q: %v", e.Path, e.Err) }

// Unwrap returns the reason.
func (e *EntryError) Unwrap() error { return e.Err }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrNotSupported, fmt.Sprintf(format, args...))
}

// pathOf is the path that names make, the innermost of which comes first. It
// consumes names, and skips an empty innermost one.
func pathOf(names []string) string {
	if names[0] == "" {
		names = names[1:]
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

// checkName says what is wrong with a name in a directory, or nothing.
func checkName(name string) string {
	switch {
	case name == "":
		return "name is empty"
	case name == "." || name == "..":
		return "name is reserved"
	case len(name) > MaxName:
		return fmt.Sprintf("name has %d bytes, %d are possible", len(name), MaxName)
	case strings.IndexByte(name, '/') >= 0:
		return "name has a slash"
	case strings.IndexByte(name, 0) >= 0:
		return "name has a NUL"
	}
	return ""
}
