package config

import (
	"cmp"
	"os"
	"strings"

	"accessbroker.internal/store"
)

// storage checks where rows and policies are.
func (c *checker) storage() {
	f := &c.d.file
	c.storeURL(string(f.Store))
	if f.Policies == "" {
		c.report("policies", "write the folder of the policies")
	}
	c.cfg.Policies = c.path(f.Policies)
}

// storeURL checks the URL of the store, which may be in a file or a variable.
func (c *checker) storeURL(reference string) {
	if path, ok := strings.CutPrefix(reference, "file:"); ok {
		reference = "file:" + c.path(path)
	}
	u, err := store.Expand(reference, c.env)
	if err != nil {
		c.report("store", "%v", err)
		return
	}
	weak, err := store.CheckURL(u)
	if err != nil {
		c.report("store", "%v", err)
	}
	for _, w := range weak {
		c.warn("store", "%s", w)
	}
	c.cfg.Store = store.ResolveURL(u, c.dir)
	own := c.path(c.d.file.Server.Checkpoint)
	if !store.IsPostgres(u) {
		c.cfg.CheckpointFile = cmp.Or(own, store.FilePath(c.cfg.Store)+".checkpoint")
		return
	}
	if c.cfg.CheckpointFile = own; own == "" {
		c.report("server/checkpoint_file", "with PostgreSQL, write the path of a file on this machine: it reveals a database that lost records")
	}
	if u == reference && store.HasPassword(u) && c.readableByOthers() {
		c.warn("store", "other users can read the database's password in this file: write it in a file of mode 0600 and add ?password_file=PATH, or run chmod 600")
	}
}

// readableByOthers reports whether the operator's file can be read by other users.
func (c *checker) readableByOthers() bool {
	info, err := os.Stat(c.d.path)
	return err == nil && info.Mode().Perm()&0o007 != 0
}
