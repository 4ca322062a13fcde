package keeper

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Deaths counts the workers that have died and were replaced. An upgrade is no
// death.
type Deaths struct {
	Count int       `json:"count"`
	Last  time.Time `json:"last"` // zero where Count is
}

// another is d after one more death.
func (d Deaths) another(now time.Time) Deaths { return Deaths{Count: d.Count + 1, Last: now} }

// text is the value of EnvDeaths.
func (d Deaths) text() string { return fmt.Sprintf("%d %d", d.Count, d.Last.Unix()) }

// parseDeaths reads a value of EnvDeaths; empty: no deaths.
func parseDeaths(value string) (Deaths, error) {
	if value == "" {
		return Deaths{}, nil
	}
	first, second, _ := strings.Cut(value, " ")
	n, err := strconv.Atoi(first)
	at, e := strconv.ParseInt(second, 10, 64)
	if err != nil || e != nil || n <= 0 {
		return Deaths{}, fmt.Errorf("read %s=%q: not a number and a time", EnvDeaths, value)
	}
	return Deaths{Count: n, Last: time.Unix(at, 0)}, nil
}
