package devnode

import (
	"bytes"
	"os"
	"strconv"
)

// maxDepth bounds the walk up the process tree.
const maxDepth = 1024

// IsBelow tells whether the process pid is ancestor or descends from it.
func IsBelow(pid, ancestor int) bool { return descends(pid, ancestor, parentOf) }

// descends walks up from pid twice. While a process lives, its parent's number
// changes only when that parent ends; so what the second walk finds unchanged
// was one chain of living processes, and no number in it had been reused.
func descends(pid, ancestor int, parent func(int) (int, bool)) bool {
	var chain []int
	for p := pid; p != ancestor; {
		if len(chain) == maxDepth {
			return false
		}
		chain = append(chain, p)
		above, ok := parent(p)
		if !ok || above <= 1 && above != ancestor {
			return false
		}
		p = above
	}
	for i, p := range chain {
		want := ancestor
		if i+1 < len(chain) {
			want = chain[i+1]
		}
		if above, ok := parent(p); !ok || above != want {
			return false
		}
	}
	return true
}

// parentOf is the process's parent, from /proc/PID/stat.
func parentOf(pid int) (int, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	return parentInStat(stat)
}

// parentInStat reads the fourth field of /proc/PID/stat (proc_pid_stat(5)).
// The second, the name in parentheses, may hold spaces and parentheses itself,
// so fields are counted from the last closing one.
func parentInStat(stat []byte) (int, bool) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, false
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) < 2 {
		return 0, false
	}
	ppid, err := strconv.Atoi(string(fields[1]))
	return ppid, err == nil && ppid >= 0
}
