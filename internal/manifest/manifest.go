// Package manifest reads lists of files that are to appear as one tree: where each
// lies in the tree, which source has its bytes, and what is known of them.
//
//	[{"path": "train/0.tar", "url": "https://example.org/0.tar", "size": 1048576, "sha256": "..."}]
//
// The list may also be the value of "files" in an object. Package control's
// MountRequest names the file; this package does no input but from its reader.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of a manifest.
const (
	MaxBytes = 256 << 20 // of the whole text
	MaxFiles = 1 << 20
	MaxSize  = 1 << 43 // of one file: 8 TiB, half of what a filesystem image can address
	MaxName  = 255     // bytes of a name: NAME_MAX of limits.h
	MaxPath  = 4095    // bytes of a path: PATH_MAX of limits.h, less its NUL
	MaxURL   = 8 << 10
	MaxDepth = 128 // directories above a file
)

// UnknownSize is the Size of an entry that does not tell.
const UnknownSize = -1

// Entry is one file.
type Entry struct {
	// Path in the tree: relative, clean, its parts separated by slashes.
	Path string
	// URL is an http or https URL, or the absolute path of a local file.
	URL string
	// Size in bytes, or UnknownSize.
	Size int64
	// SHA256 of the bytes, in lower-case hexadecimal digits, or empty.
	SHA256 string
	// Mode has the permission bits; 0444 where the manifest does not tell.
	Mode uint32
	// Modified is the time of the last modification; zero where the manifest
	// does not tell.
	Modified time.Time
}

// ErrInvalid: the text is no manifest, or says what cannot be.
var ErrInvalid = errors.New("invalid manifest")

// EntryError says which entry is wrong, and where.
type EntryError struct {
	// Number of the entry, from 1 on.
	Number int
	// Path of the entry as it is written, or empty.
	Path string
	// Field that is wrong, or empty.
	Field string
	// Reason says what is wrong with it.
	Reason string
}

// Error names the entry and the field.
func (e *EntryError) Error() string {
	text := fmt.Sprintf("entry %d", e.Number)
	if e.Path != "" {
		text += fmt.Sprintf(" (%s)", quote(e.Path))
	}
	if e.Field != "" {
		text += ": " + e.Field
	}
	return text + ": " + e.Reason
}

// Unwrap makes it an ErrInvalid.
func (e *EntryError) Unwrap() error { return ErrInvalid }

// quote shows a piece of the manifest, at most a line of it.
func quote(s string) string {
	if len(s) > 100 {
		s = strings.ToValidUTF8(s[:100], "") + "..."
	}
	return strconv.Quote(s)
}

// text is an entry as it is written. Pointers tell what is absent.
type text struct {
	Path     *string          `json:"path"`
	URL      *string          `json:"url"`
	Size     *json.RawMessage `json:"size"`
	SHA256   string           `json:"sha256"`
	Mode     string           `json:"mode"`
	Modified string           `json:"mtime"`
}

// Parse reads a manifest. An error in one entry is an *EntryError.
func Parse(r io.Reader) ([]Entry, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("%w: more than %d MiB", ErrInvalid, MaxBytes>>20)
	}
	if !utf8.Valid(b) {
		return nil, fmt.Errorf("%w: not UTF-8", ErrInvalid)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	ends, err := toList(dec)
	if err != nil {
		return nil, err
	}
	p := parser{names: make(map[string]int)}
	for dec.More() {
		if len(p.entries) == MaxFiles {
			return nil, fmt.Errorf("%w: more than %d files", ErrInvalid, MaxFiles)
		}
		if err := p.entry(dec); err != nil {
			return nil, err
		}
	}
	if err := toEnd(dec, ends); err != nil {
		return nil, err
	}
	if len(p.entries) == 0 {
		return nil, fmt.Errorf("%w: no file in it", ErrInvalid)
	}
	return p.entries, nil
}

// toList goes on to the first entry, and returns what has to close behind the last.
func toList(dec *json.Decoder) ([]json.Delim, error) {
	ends := []json.Delim{']'}
	t, err := dec.Token()
	if err == nil && t == json.Delim('{') {
		ends = []json.Delim{']', '}'}
		if t, err = dec.Token(); err == nil && t != "files" {
			return nil, fmt.Errorf("%w: an object has \"files\" and nothing else", ErrInvalid)
		}
		if err == nil {
			t, err = dec.Token()
		}
	}
	if err != nil {
		return nil, syntax(err)
	}
	if t != json.Delim('[') {
		return nil, fmt.Errorf("%w: a list of files is expected", ErrInvalid)
	}
	return ends, nil
}

// toEnd wants ends to come, and nothing else.
func toEnd(dec *json.Decoder, ends []json.Delim) error {
	for _, end := range ends {
		t, err := dec.Token()
		if err != nil {
			return syntax(err)
		}
		if t != end {
			return fmt.Errorf("%w: an object has \"files\" and nothing else", ErrInvalid)
		}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows the list", ErrInvalid)
	}
	return nil
}

func syntax(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends too early", ErrInvalid)
	}
	var s *json.SyntaxError
	if errors.As(err, &s) {
		return fmt.Errorf("%w: not JSON at byte %d: %s", ErrInvalid, s.Offset, s.Error())
	}
	return fmt.Errorf("%w: %s", ErrInvalid, err.Error())
}

// parser is one reading.
type parser struct {
	entries []Entry
	// names are the paths of entries, with their number, and those of the
	// directories that they make, with that number below zero.
	names map[string]int
}

func (p *parser) entry(dec *json.Decoder) error {
	n := len(p.entries) + 1
	var t text
	if err := dec.Decode(&t); err != nil {
		var field *json.UnmarshalTypeError
		switch {
		case errors.As(err, &field):
			return &EntryError{Number: n, Field: field.Field, Reason: "a " + field.Value + " is not what belongs there"}
		case strings.HasPrefix(err.Error(), "json: "):
			return &EntryError{Number: n, Reason: strings.TrimPrefix(err.Error(), "json: ")}
		}
		return fmt.Errorf("entry %d: %w", n, syntax(err))
	}
	bad := &EntryError{Number: n}
	if t.Path != nil {
		bad.Path = *t.Path
	}
	var e Entry
	for _, f := range []struct {
		name string
		read func(t *text, e *Entry) string
	}{
		{"path", readPath}, {"url", readURL}, {"size", readSize}, {"sha256", readDigest}, {"mode", readMode}, {"mtime", readTime},
	} {
		if reason := f.read(&t, &e); reason != "" {
			bad.Field, bad.Reason = f.name, reason
			return bad
		}
	}
	if reason := p.place(e.Path, n); reason != "" {
		bad.Field, bad.Reason = "path", reason
		return bad
	}
	p.entries = append(p.entries, e)
	return nil
}

// place notes that the path is that of entry n, or says why it cannot be.
func (p *parser) place(name string, n int) string {
	if other := p.names[name]; other > 0 {
		return fmt.Sprintf("entry %d has it already", other)
	} else if other < 0 {
		return fmt.Sprintf("it is a directory of entry %d", -other)
	}
	p.names[name] = n
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if other := p.names[dir]; other > 0 {
			return fmt.Sprintf("%s is a file, of entry %d", quote(dir), other)
		} else if other < 0 {
			break // and so are those above
		}
		p.names[dir] = -n
	}
	return ""
}

func readPath(t *text, e *Entry) string {
	switch {
	case t.Path == nil:
		return "missing"
	case *t.Path == "":
		return "empty"
	case len(*t.Path) > MaxPath:
		return fmt.Sprintf("%d bytes long, at most %d are allowed", len(*t.Path), MaxPath)
	case strings.HasPrefix(*t.Path, "/"):
		return "it is absolute; paths are relative to the directory of the mount"
	case strings.ContainsRune(*t.Path, 0):
		return "it has a NUL"
	}
	names := strings.Split(*t.Path, "/")
	for _, name := range names {
		switch {
		case name == "..":
			return "it leads out of the tree with \"..\""
		case name == "" || name == ".":
			return fmt.Sprintf("not clean: write %s", quote(path.Clean(*t.Path)))
		case len(name) > MaxName:
			return fmt.Sprintf("a name of %d bytes, at most %d are allowed", len(name), MaxName)
		}
	}
	if len(names) > MaxDepth+1 {
		return fmt.Sprintf("%d directories deep, at most %d are allowed", len(names)-1, MaxDepth)
	}
	e.Path = *t.Path
	return ""
}

// readURL never quotes a URL: it may hold what is secret.
func readURL(t *text, e *Entry) string {
	switch {
	case t.URL == nil:
		return "missing"
	case *t.URL == "":
		return "empty"
	case len(*t.URL) > MaxURL:
		return fmt.Sprintf("%d bytes long, at most %d are allowed", len(*t.URL), MaxURL)
	case strings.ContainsRune(*t.URL, 0):
		return "it has a NUL"
	}
	e.URL = *t.URL
	if path.IsAbs(e.URL) {
		return ""
	}
	u, err := url.Parse(e.URL)
	switch {
	case err != nil:
		return "it cannot be parsed; write blanks and special characters as %20 and the like"
	case u.Scheme != "http" && u.Scheme != "https":
		return "neither an http:// or https:// URL nor an absolute path"
	case u.Hostname() == "":
		return "it names no host"
	}
	return ""
}

func readSize(t *text, e *Entry) string {
	e.Size = UnknownSize
	if t.Size == nil {
		return ""
	}
	raw := string(*t.Size)
	n, err := strconv.ParseInt(raw, 10, 64)
	switch {
	case strings.HasPrefix(raw, `"`):
		return fmt.Sprintf("%s is a string: write the number of bytes without quotes", quote(strings.Trim(raw, `"`)))
	case strings.ContainsAny(raw[:1], "tf[{"):
		return "it is not a number"
	case err != nil:
		return fmt.Sprintf("%s is not a number of bytes", quote(raw))
	case n < 0:
		return fmt.Sprintf("%d is negative", n)
	case n > MaxSize:
		return fmt.Sprintf("%d bytes, at most %d are allowed", n, int64(MaxSize))
	}
	e.Size = n
	return ""
}

func readDigest(t *text, e *Entry) string {
	d := strings.TrimPrefix(strings.ToLower(t.SHA256), "sha256:")
	if t.SHA256 != "" && (len(d) != 64 || strings.Trim(d, "0123456789abcdef") != "") {
		return fmt.Sprintf("%s is not a digest of 64 hexadecimal digits", quote(t.SHA256))
	}
	e.SHA256 = d
	return ""
}

func readMode(t *text, e *Entry) string {
	e.Mode = 0o444
	if t.Mode == "" {
		return ""
	}
	n, err := strconv.ParseUint(t.Mode, 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Sprintf("%s is not permission bits in octal digits, such as \"0644\"", quote(t.Mode))
	}
	e.Mode = uint32(n)
	return ""
}

func readTime(t *text, e *Entry) string {
	if t.Modified == "" {
		return ""
	}
	at, err := time.Parse(time.RFC3339, t.Modified)
	if err != nil {
		return fmt.Sprintf("%s is not a time such as \"2026-01-02T15:04:05Z\"", quote(t.Modified))
	}
	if e.Modified = at.UTC(); e.Modified.Unix() < 0 || e.Modified.Year() > 9999 {
		return fmt.Sprintf("%s is before 1970 or after 9999", quote(t.Modified))
	}
	return ""
}
