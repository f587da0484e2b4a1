package campaign

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// page is the path of a campaign's page.
func page(c *broker.Campaign) string { return "/ui/campaigns/" + c.ID.String() }

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z07:00") }

func items(n int) string {
	if n == 1 {
		return "1 item"
	}
	return fmt.Sprintf("%d items", n)
}

// notifyReviewers notifies each reviewer of the items that wait for them.
func (m *Manager) notifyReviewers(tx broker.Tx, event broker.NoticeEvent, c *broker.Campaign, waiting map[string]int, rules *broker.Rules, now time.Time) {
	for _, reviewer := range slices.Sorted(maps.Keys(waiting)) {
		kind, name, _ := strings.Cut(reviewer, " ")
		n := waiting[reviewer]
		a := broker.Announcement{
			Event: event, Page: page(c), Title: fmt.Sprintf("Access review %s: %s to decide until %s", c.Name, items(n), day(c.Deadline)),
			Text: fmt.Sprintf("Keep, narrow or end each of them. What no one reviewed by then is disabled.\nReviewer: %s", reviewer),
		}
		switch {
		case name == "":
		case kind == "group":
			broker.Announce(tx, rules, a, []string{name}, nil, now)
		default:
			broker.Announce(tx, rules, a, nil, []string{name}, now)
		}
	}
}

// announce notifies groups of the whole campaign.
func announce(tx broker.Tx, event broker.NoticeEvent, c *broker.Campaign, title, text string, groups []string, rules *broker.Rules, now time.Time) {
	broker.Announce(tx, rules, broker.Announcement{Event: event, Page: page(c), Title: "Access review " + c.Name + ": " + title, Text: text}, groups, nil, now)
}
