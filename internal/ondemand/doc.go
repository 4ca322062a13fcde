// Package ondemand is the seam between who reads and who fills: ranges,
// presence, object ids, the Filler, and the Table of pending requests.
//
// It is the model of the on-demand read mode proposed for Linux cachefiles in
// February 2022 (Message-Id 20220215111335.123528-1-jefflexu@linux.alibaba.com):
// a read meets a hole, a request is pending, the reader sleeps, somebody fills
// the hole and reports it done, the reader wakes; when nobody is left to fill,
// pending requests are flushed, and readers get an error, never zeros.
//
// Front ends (the packages below this one) translate what a kernel interface
// says into Submit calls, and answers back. Fillers bring data: from a source
// (package fetch) or through an external daemon (package devnode). This package
// uses the standard library only and knows neither.
package ondemand
