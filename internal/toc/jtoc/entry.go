package jtoc

import (
	"encoding/base64"

	"github.com/lacunafs/lacuna/internal/toc"
)

// entry is one of the JSON text, as stargz's TOCEntry (estargz/types.go) and the
// FileMetadata of containers/storage (pkg/chunked/internal/minimal) have it.
type entry struct {
	kind        string
	name        string
	linkName    string
	modTime     string
	digest      string
	chunkDigest string
	chunkType   string
	xattrs      []toc.Xattr

	size, mode, uid, gid, devMajor, devMinor int64
	offset, endOffset, innerOffset           int64
	chunkOffset, chunkSize                   int64

	seen uint32 // a bit for each member that was read
}

// member reads the member key of an entry. A second value for one that is known
// could mean another thing to another reader.
func (l *lexer) member(e *entry, key []byte) error {
	if isNull, err := l.null(); isNull || err != nil {
		return err
	}
	if n, at := e.number(key); at != nil {
		if err := e.once(n, key); err != nil {
			return err
		}
		v, err := l.integer()
		*at = v
		return err
	}
	if n, at := e.word(key); at != nil {
		if err := e.once(n, key); err != nil {
			return err
		}
		v, err := l.str()
		*at = e.text(v)
		return err
	}
	if string(key) == "xattrs" {
		if err := e.once(31, key); err != nil {
			return err
		}
		return l.xattrs(e)
	}
	return l.skip(maxDepth)
}

// text is v as a string, without a copy of what is in memory already: types, and
// the digest of a file that is one chunk, which comes twice.
func (e *entry) text(v []byte) string {
	for _, known := range [...]string{"reg", "dir", "symlink", "hardlink", "chunk", e.digest, e.chunkDigest} {
		if string(v) == known {
			return known
		}
	}
	return string(v)
}

func (e *entry) once(n int, key []byte) error {
	if e.seen&(1<<n) != 0 {
		return invalid("two values for %q in one entry", key)
	}
	e.seen |= 1 << n
	return nil
}

func (e *entry) number(key []byte) (n int, at *int64) {
	switch string(key) {
	case "size":
		return 0, &e.size
	case "mode":
		return 1, &e.mode
	case "uid":
		return 2, &e.uid
	case "gid":
		return 3, &e.gid
	case "devMajor":
		return 4, &e.devMajor
	case "devMinor":
		return 5, &e.devMinor
	case "offset":
		return 6, &e.offset
	case "endOffset":
		return 7, &e.endOffset
	case "innerOffset":
		return 8, &e.innerOffset
	case "chunkOffset":
		return 9, &e.chunkOffset
	case "chunkSize":
		return 10, &e.chunkSize
	}
	return 0, nil
}

func (e *entry) word(key []byte) (n int, at *string) {
	switch string(key) {
	case "type":
		return 16, &e.kind
	case "name":
		return 17, &e.name
	case "linkName":
		return 18, &e.linkName
	case "modtime":
		return 19, &e.modTime
	case "digest":
		return 20, &e.digest
	case "chunkDigest":
		return 21, &e.chunkDigest
	case "chunkType":
		return 22, &e.chunkType
	}
	return 0, nil
}

func (l *lexer) xattrs(e *entry) error {
	return l.object(func(key []byte) error {
		name := string(key)
		for i := range e.xattrs {
			if e.xattrs[i].Name == name {
				return invalid("two values for extended attribute %q", name)
			}
		}
		if len(e.xattrs) > toc.MaxXattr/2 {
			return invalid("too many extended attributes")
		}
		if isNull, err := l.null(); isNull || err != nil {
			e.xattrs = append(e.xattrs, toc.Xattr{Name: name})
			return err
		}
		text, err := l.str()
		if err != nil {
			return err
		}
		value := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
		n, err := base64.StdEncoding.Strict().Decode(value, text)
		if err != nil {
			return invalid("value of extended attribute %q is not base64", name)
		}
		e.xattrs = append(e.xattrs, toc.Xattr{Name: name, Value: string(value[:n])})
		return nil
	})
}

// document reads the whole text and hands each entry to add, which must not
// keep it.
func (l *lexer) document(add func(*entry) error) error {
	var version int64
	var hasVersion, hasEntries bool
	err := l.object(func(key []byte) (err error) {
		switch string(key) {
		case "version":
			if hasVersion {
				return invalid("two versions")
			}
			hasVersion = true
			version, err = l.integer()
			return err
		case "entries":
			if hasEntries {
				return invalid("two lists of entries")
			}
			hasEntries = true
			if isNull, err := l.null(); isNull || err != nil {
				return err
			}
			return l.entries(add)
		}
		return l.skip(maxDepth)
	})
	switch {
	case err != nil:
		return err
	case version != 1 || !hasEntries:
		return invalid("version %d, only 1 is known", version)
	}
	return l.drained()
}

// entries reads the list, all of it into the same memory.
func (l *lexer) entries(add func(*entry) error) error {
	e := new(entry)
	member := func(key []byte) error { return l.member(e, key) }
	return l.array(func() error {
		*e = entry{}
		if err := l.object(member); err != nil {
			return err
		}
		return add(e)
	})
}
