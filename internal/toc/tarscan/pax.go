package tarscan

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/lacunafs/lacuna/internal/toc"
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, toc.ErrInvalid)...)
}

const sparseMap = "GNU.sparse.map"

// parsePAX reads extended header records, "length key=value\n" (POSIX pax). A key
// that comes again replaces the value before, except those of sparse format 0.0,
// which are a list: they are joined as format 0.1 has them.
func parsePAX(data []byte) (map[string]string, error) {
	records := make(map[string]string)
	var sparse []string
	for len(data) > 0 {
		space := bytes.IndexByte(data[:min(len(data), 20)], ' ')
		if space < 0 {
			return nil, invalid("extended header record without a length")
		}
		n, err := strconv.ParseUint(string(data[:space]), 10, 31)
		if err != nil || int(n) > len(data) || int(n) < space+3 || data[n-1] != '\n' {
			return nil, invalid("extended header record of length %q", data[:space])
		}
		key, value, ok := strings.Cut(string(data[space+1:n-1]), "=")
		data = data[n:]
		if !ok || key == "" || strings.IndexByte(key, 0) >= 0 {
			return nil, invalid("extended header record %.200q", key)
		}
		switch key {
		case "path", "linkpath", "GNU.sparse.name":
			if strings.IndexByte(value, 0) >= 0 {
				return nil, invalid("extended header record %s with a NUL byte", key)
			}
		case "GNU.sparse.offset", "GNU.sparse.numbytes":
			if want := "GNU.sparse.offset"; (len(sparse)%2 == 0) != (key == want) || strings.Contains(value, ",") {
				return nil, invalid("sparse map out of order")
			}
			sparse = append(sparse, value)
			continue
		}
		records[key] = value
	}
	if len(sparse) > 0 {
		records[sparseMap] = strings.Join(sparse, ",")
	}
	return records, nil
}

// mergePAX puts the records' values in the place of the header's. An empty one
// leaves the header's.
func (h *header) mergePAX() (err error) {
	for _, k := range []string{"path", "linkpath", "uid", "gid", "size", "mtime"} {
		v := h.pax[k]
		if v == "" {
			continue
		}
		switch k {
		case "path":
			h.name = v
		case "linkpath":
			h.link = v
		case "uid":
			h.uid, err = strconv.ParseInt(v, 10, 64)
		case "gid":
			h.gid, err = strconv.ParseInt(v, 10, 64)
		case "size":
			h.size, err = strconv.ParseInt(v, 10, 64)
		case "mtime":
			h.sec, h.nsec, err = parseTime(v)
		}
		if err != nil {
			return invalid("%.200q: extended header record %s=%.200q", h.name, k, v)
		}
	}
	return nil
}

// parseTime reads seconds with a fraction. What is finer than nanoseconds is cut.
func parseTime(s string) (sec int64, nsec uint32, err error) {
	whole, fraction, _ := strings.Cut(s, ".")
	if sec, err = strconv.ParseInt(whole, 10, 64); err != nil {
		return 0, 0, err
	}
	if strings.Trim(fraction, "0123456789") != "" {
		return 0, 0, errNumber
	}
	digits := (fraction + "000000000")[:9]
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return 0, 0, err
	}
	if n > 0 && strings.HasPrefix(whole, "-") {
		return sec - 1, uint32(1e9 - n), nil
	}
	return sec, uint32(n), nil
}
