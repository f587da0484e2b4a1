//go:build !unix

package store

import "io/fs"

func ownedByRoot(fs.FileInfo) bool { return false }

func ownedByAnother(_ fs.FileInfo, _ string) bool { return false }

func hasOtherNames(fs.FileInfo) bool { return false }
