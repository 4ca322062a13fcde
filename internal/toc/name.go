package toc

import (
	"fmt"
	"strings"
)

// CleanName is the path that a layer means by raw: leading slashes are dropped,
// as are empty and "." components and a trailing slash, as tar programs do. The
// root, however it is written, is "". A ".." component is refused, even
// where it would not leave the root; so are names that no file can have.
func CleanName(raw string) (string, error) {
	if raw == "" {
		return "", fmt.Errorf("empty name: %w", ErrInvalid)
	}
	// As nearly every name is, but for its ends.
	if most := strings.TrimSuffix(strings.TrimPrefix(raw, "./"), "/"); isClean(most) {
		return most, nil
	}
	for part := range strings.SplitSeq(raw, "/") {
		if err := checkComponent(raw, part); err != nil {
			return "", err
		}
	}
	parts := strings.Split(raw, "/")
	kept := parts[:0]
	for _, p := range parts {
		if p != "" && p != "." {
			kept = append(kept, p)
		}
	}
	name := strings.Join(kept, "/")
	if len(name) > MaxName {
		return "", fmt.Errorf("name of %d bytes, the limit is %d: %w", len(name), MaxName, ErrInvalid)
	}
	return name, nil
}

// isClean tells whether CleanName leaves name as it is.
func isClean(name string) bool {
	if len(name) > MaxName {
		return false
	}
	begin := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			if name[i] == 0 {
				return false
			}
			continue
		}
		switch n := i - begin; {
		case n == 0, n > MaxComponent, n == 1 && name[begin] == '.', n == 2 && name[begin] == '.' && name[begin+1] == '.':
			return false
		}
		begin = i + 1
	}
	return true
}

func checkComponent(raw, part string) error {
	switch {
	case part == "..":
		return fmt.Errorf("name %s has a .. component: %w", quote(raw), ErrInvalid)
	case len(part) > MaxComponent:
		return fmt.Errorf("name %s has a component of %d bytes, the limit is %d: %w", quote(raw), len(part), MaxComponent, ErrInvalid)
	case strings.IndexByte(part, 0) >= 0:
		return fmt.Errorf("name %s has a NUL byte: %w", quote(raw), ErrInvalid)
	}
	return nil
}

// split cuts a clean name into its directory and last component.
func split(name string) (dir, last string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// join is the opposite of split.
func join(dir, last string) string {
	if dir == "" {
		return last
	}
	return dir + "/" + last
}

// quote is a name as messages show it, cut where it is very long.
func quote(name string) string {
	const most = 200
	if len(name) > most {
		return fmt.Sprintf("%q...", name[:most])
	}
	return fmt.Sprintf("%q", name)
}

// The markers of the image specification (layer.md, Whiteouts), which are AUFS's.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	// Other names with this prefix are AUFS's own bookkeeping (.wh..wh.plnk, .wh..wh.aufs).
	privatePrefix = ".wh..wh."
)

// whiteout tells what the clean name of an entry means: for a marker its type
// and the name that it is about; private is true for what is to be left out.
func whiteout(name string) (t Type, victim string, private bool, err error) {
	dir, last := split(name)
	if strings.HasPrefix(dir, privatePrefix) || strings.Contains(dir, "/"+privatePrefix) {
		return 0, "", true, nil
	}
	if !strings.HasPrefix(last, whiteoutPrefix) {
		return 0, "", false, nil
	}
	if last == opaqueMarker {
		return Opaque, dir, false, nil
	}
	if strings.HasPrefix(last, privatePrefix) {
		return 0, "", true, nil
	}
	hidden := last[len(whiteoutPrefix):]
	if hidden == "" || hidden == "." || hidden == ".." {
		return 0, "", false, fmt.Errorf("whiteout %s hides no name: %w", quote(name), ErrInvalid)
	}
	return Whiteout, join(dir, hidden), false, nil
}
