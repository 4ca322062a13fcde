// Package pax reads what the records of PAX extended headers say beyond tar's own
// fields, for the readers that are given such records.
package pax

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	"github.com/lacunafs/lacuna/internal/toc"
)

// Xattrs are the extended attributes: star's records, which everybody writes,
// and libarchive's for those that star's do not name. ACLs come as the attributes
// that the kernel has for them; the textual records (SCHILY.acl) are passed over, as
// programs that unpack layers do.
func Xattrs(records map[string]string) ([]toc.Xattr, error) {
	const star, libarchive = "SCHILY.xattr.", "LIBARCHIVE.xattr."
	var out []toc.Xattr
	for k, v := range records {
		if name, ok := strings.CutPrefix(k, star); ok {
			out = append(out, toc.Xattr{Name: name, Value: v})
			continue
		}
		coded, ok := strings.CutPrefix(k, libarchive)
		if !ok {
			continue
		}
		name, err := url.PathUnescape(coded)
		if err != nil {
			return nil, fmt.Errorf("extended attribute %.200q: %w", k, toc.ErrInvalid)
		}
		if _, named := records[star+name]; named {
			continue
		}
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "="))
		if err != nil {
			return nil, fmt.Errorf("extended attribute %.200q is not base64: %w", k, toc.ErrInvalid)
		}
		out = append(out, toc.Xattr{Name: name, Value: string(raw)})
	}
	return out, nil
}
