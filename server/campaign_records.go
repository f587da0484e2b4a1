package server

import (
	"cmp"
	"fmt"
	"strings"

	"accessbroker.internal/audit"
)

// Records of access reviews, for people. A record that another program wrote may lack any
// part.

func reviewOf(r *audit.Record) string {
	if r.Campaign == nil {
		return "(unknown)"
	}
	return cmp.Or(r.Campaign.Name, "(unknown)")
}

func itemsOf(r *audit.Record) string {
	switch {
	case r.Campaign == nil || r.Campaign.Items == 0:
		return ""
	case r.Campaign.Items == 1:
		return " with 1 item"
	}
	return fmt.Sprintf(" with %d items", r.Campaign.Items)
}

func permissionOf(r *audit.Record) string {
	if r.Campaign == nil {
		return "a permission"
	}
	return cmp.Or(r.Campaign.Permission, "a permission")
}

func reviewerOf(r *audit.Record, none string) string {
	if r.Campaign == nil {
		return none
	}
	return cmp.Or(r.Campaign.Reviewer, none)
}

func sayDecided(r *audit.Record) string {
	if r.Campaign == nil {
		return by(r) + " decided in an access review."
	}
	verb := map[string]string{"keep": " kept ", "narrow": " narrowed ", "end": " ended "}[r.Campaign.Verdict]
	text := by(r) + cmp.Or(verb, " decided on ") + permissionOf(r)
	if len(r.Campaign.Left) > 0 {
		text += " to " + strings.Join(r.Campaign.Left, ", ")
	}
	if !r.Campaign.Seed.IsZero() {
		text += fmt.Sprintf(", one of %d in one decision", max(r.Campaign.Items, 1))
	}
	text += ", in the access review " + reviewOf(r)
	if r.Campaign.Second {
		return text + "; it waits for a second look."
	}
	return text + "."
}

// campaign adds the facts of an access review.
func (f *fielder) campaign(c *audit.CampaignFacts) {
	if c == nil {
		return
	}
	f.group("Access review")
	f.link("Campaign", c.ID, "q")
	f.text("Name", c.Name)
	if c.Items > 0 {
		f.text("Items", fmt.Sprint(c.Items))
	}
	if c.Item > 0 {
		f.text("Item", fmt.Sprint(c.Item))
	}
	f.text("Permission", c.Permission)
	f.text("Reviewer", c.Reviewer)
	f.text("Decision", c.Verdict)
	f.text("Left", strings.Join(c.Left, ", "))
	f.committed("Reason", "reason", c.Reason)
	f.digest("Digest", c.Digest)
	f.digest("Seed of the second looks", c.Seed)
	if c.Second {
		f.text("Second look", "requested")
	}
	if c.Signed {
		f.text("Signature", "required")
	}
	f.time("Deadline", c.Deadline)
	if c.Waiting > 0 {
		f.text("Waiting items", fmt.Sprint(c.Waiting))
	}
}
