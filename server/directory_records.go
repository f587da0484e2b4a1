package server

import (
	"cmp"
	"fmt"
	"strings"

	"accessbroker.internal/audit"
)

// Records of the directory, as sentences and as fields.

func sayDirectoryUser(r *audit.Record) string {
	d := r.Directory
	if d == nil {
		return "A user was provisioned."
	}
	text := fmt.Sprintf("%s %s the user %s", by(r), cmp.Or(d.Op, "changed"), cmp.Or(d.Person, d.ID))
	switch {
	case d.Op == "deleted":
	case d.Active:
		text += ", who is active"
	default:
		text += ", who is not active"
	}
	return text + "."
}

func sayDirectoryGroup(r *audit.Record) string {
	d := r.Directory
	if d == nil {
		return "A group was provisioned."
	}
	text := fmt.Sprintf("%s %s the group %s", by(r), cmp.Or(d.Op, "changed"), d.ID)
	if len(d.Added) > 0 {
		text += "; in: " + few(d.Added)
	}
	if len(d.Removed) > 0 {
		text += "; out: " + few(d.Removed)
	}
	return text + "."
}

// few returns the first names of a list.
func few(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

func sayDirectoryToken(r *audit.Record) string {
	d := r.Directory
	if d == nil {
		return "A token of a provisioning client was signed or revoked."
	}
	if d.Op == "revoked" {
		return fmt.Sprintf("%s revoked the token %s of %s.", by(r), d.ID, d.Source)
	}
	return fmt.Sprintf("%s had the broker sign a token of %s, valid until %s.", by(r), d.Source, d.Expires.UTC().Format("2006-01-02 15:04:05 UTC"))
}

// directory adds the change of a user, a group or a token.
func (f *fielder) directory(d *audit.DirectoryFacts) {
	if d == nil {
		return
	}
	f.group("Directory")
	f.text("Source", d.Source)
	f.text("Change", d.Op)
	f.text("ID", d.ID)
	if d.Person != "" {
		f.link("Person", d.Person, "q")
	}
	if d.Person != "" || d.Changed != nil {
		f.text("Active", map[bool]string{true: "yes", false: "no"}[d.Active])
	}
	f.text("Manager", d.Manager)
	f.list("Changed attributes", d.Changed)
	f.committed("Name", "name", d.Name)
	f.list("Memberships that a directory states", d.Memberships)
	f.list("Members in", d.Added)
	f.list("Members out", d.Removed)
	f.time("Valid until", d.Expires)
}
