// Package depcheck holds tests about the repository as a whole: which package
// may import which, what the binary contains, how files and packages are
// sized and named, and what no text may hold. The linter's fences say part of
// it again where an editor shows it; the tests here read what the go command
// says is built, tests included.
package depcheck
