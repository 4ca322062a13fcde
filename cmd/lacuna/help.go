package main

import (
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/alecthomas/kong"
)

// helpWidth is the longest line of a help text.
const helpWidth = 80

// A verb's help is: the synopsis, what it does in a line, operands and effects in
// prose with one real session, its flags, and the statuses that it ends with.
// Help() of the verb has the prose and, from the line exitHeading on, the
// statuses; both are printed as they stand. testdata/help has a copy of all.
const exitHeading = "EXIT STATUS"

// prose is a verb's long help.
type prose interface{ Help() string }

// printHelp prints the help of the command that was chosen, or of the program.
func printHelp(_ kong.HelpOptions, ctx *kong.Context) error {
	w := &textWriter{out: ctx.Stdout}
	node := ctx.Selected()
	if node == nil {
		programHelp(w, ctx.Model.Node)
		return w.err
	}
	verbHelp(w, node)
	return w.err
}

// textWriter remembers the first error.
type textWriter struct {
	out io.Writer
	err error
}

func (w *textWriter) printf(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.out, format, args...)
	}
}

func verbHelp(w *textWriter, node *kong.Node) {
	if node.DefaultCmd != nil {
		node = node.DefaultCmd // what the verb does without a word of its own
	}
	w.printf("%s\n\n%s\n", synopsis(node), node.Help)
	var text string
	if p, ok := node.Target.Addr().Interface().(prose); ok {
		text = p.Help()
	}
	text, exit, _ := strings.Cut(text, exitHeading+"\n")
	if text = strings.TrimSpace(text); text != "" {
		w.printf("\n%s\n", text)
	}
	if len(node.Flags) > 0 {
		w.printf("\nFLAGS (`lacuna --help` lists those of all commands)\n")
		flagTable(w, node.Flags)
	}
	w.printf("\n%s\n%s\n", exitHeading, strings.TrimRight(exit, "\n"))
}

// synopsis is the usage of a verb, a line for each of its forms, wrapped between flags.
func synopsis(node *kong.Node) string {
	if forms, ok := node.Target.Addr().Interface().(interface{ Usage() []string }); ok {
		var lines []string
		for n, form := range forms.Usage() {
			lead := []string{"Usage: ", "       "}[min(n, 1)]
			lines = append(lines, usageLine(lead+"lacuna "+verbOf(node), optional.FindAllString(form, -1)))
		}
		return strings.Join(lines, "\n")
	}
	var parts []string
	for _, f := range node.Flags {
		part := flagName(f)
		if !f.Required {
			part = "[" + part + "]"
		}
		parts = append(parts, part)
	}
	for _, p := range node.Positional {
		name := strings.ToUpper(p.Name)
		if p.IsSlice() {
			name += "..."
		}
		if !p.Required {
			name = "[" + name + "]"
		}
		parts = append(parts, name)
	}
	return usageLine("Usage: lacuna "+verbOf(node), parts)
}

// verbOf is how a command is typed, after the program's name.
func verbOf(node *kong.Node) string {
	if node.Parent == nil || node.Parent.Type == kong.ApplicationNode {
		return node.Name
	}
	if node.Parent.DefaultCmd == node {
		return verbOf(node.Parent)
	}
	return verbOf(node.Parent) + " " + node.Name
}

// optional is an optional part of a usage line, or a word.
var optional = regexp.MustCompile(`\[[^\]]*\]|\S+`)

func usageLine(usage string, parts []string) string {
	column := len(usage)
	for _, part := range parts {
		if column+1+len(part) > helpWidth {
			usage += "\n   "
			column = 3
		}
		usage += " " + part
		column += 1 + len(part)
	}
	return usage
}

func programHelp(w *textWriter, node *kong.Node) {
	w.printf(`Usage: lacuna [flags] COMMAND ...

%s
A container image is a directory on this machine at once, and what lies behind a
URL is a file of its size. What is read of them is fetched.

  # lacuna mount registry.example/app:1 /mnt/app
  ready
  # lacuna attach https://example.org/big.iso /mnt/big.iso
  ready

COMMANDS (lacuna COMMAND --help tells more)
`, node.Help)
	for _, c := range node.Children {
		if !c.Hidden {
			w.printf("  %-9s %s\n", c.Name, c.Help)
		}
	}
	w.printf("\nFLAGS of all commands\n")
	flagTable(w, node.Flags)
	w.printf(`
A flag wins over the environment variable in brackets, that over the file, where
the setting has the same name: log_format. The file has memory, conns_per_host,
deadline and stall besides.

%s
  0  ok
  1  error
  2  wrong usage, or a setting that cannot be
  3  not supported by this kernel or filesystem, or not allowed to this user
  4  data is corrupt, or does not have the digest that it must have
  5  the source cannot be reached, or does not give the data
  6  in use by another process
`, exitHeading)
}

// flagName is the flag as it is typed.
func flagName(f *kong.Flag) string {
	if f.IsBool() {
		return "--" + f.Name
	}
	value := f.PlaceHolder
	if value == "" {
		value = strings.ToUpper(f.Name)
	}
	return "--" + f.Name + " " + value
}

// flagTable lists flags in two columns, wrapped.
func flagTable(w *textWriter, flags []*kong.Flag) {
	width := 0
	names := make([]string, len(flags))
	for i, f := range flags {
		names[i] = flagName(f)
		if f.Short != 0 {
			names[i] = fmt.Sprintf("-%c, %s", f.Short, names[i])
		}
		width = max(width, len(names[i]))
	}
	for i, f := range flags {
		help := f.Help
		if f.Name == "help" {
			help = "Show this help, or that of a command." // kong's own text says less
		}
		lines := wrap(help, helpWidth-width-4)
		w.printf("  %-*s  %s\n", width, names[i], lines[0])
		for _, l := range lines[1:] {
			w.printf("  %*s  %s\n", width, "", l)
		}
	}
}

// wrap breaks text into lines of at most width characters, save for longer words.
func wrap(text string, width int) []string {
	lines := []string{""}
	for _, word := range strings.Fields(text) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case len(*last)+1+len(word) <= width:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
	}
	return lines
}
