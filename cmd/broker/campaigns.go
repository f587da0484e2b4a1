package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// addCampaigns adds the commands of access reviews to review, whose argument is a request:
// no request id is the name of one of them.
func (a *app) addCampaigns(review *cobra.Command) {
	review.AddCommand(a.reviewStartCommand(), a.reviewListCommand(), a.reviewShowCommand(), a.reviewDecideCommand(), a.reviewRestoreCommand(), a.reviewPatchCommand())
}

// takesCampaign requires the id of a campaign, and between from and to further arguments.
func takesCampaign(c *cobra.Command, from, to int, more string) {
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) < 1+from || len(args) > 1+to {
			return usage("%s takes the id of an access review, cmp_…%s; see %s --help", c.Name(), more, c.CommandPath())
		}
		if _, err := broker.ParseCampaignID(args[0]); err != nil {
			return usage("%q is not the id of an access review: broker review list shows them", args[0])
		}
		return nil
	}
}

// asOperator adds the flags of commands for operators and for people.
func (a *app) asOperator(c *cobra.Command, socket *string) {
	a.adminSocketFlag(c, socket)
	a.client.addOperator(c)
}

func (a *app) reviewStartCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "start NAME",
		Short: "Start an access review of reviews.yaml",
		Long: `start lists what the review covers, assigns each item to a reviewer, and
notifies the reviewers. Operators use the admin socket; members of the group
that runs the review use --as-person.`,
		Example: `  broker review start quarterly --admin-socket /run/broker/admin.sock
  broker review start quarterly --as-person`,
		Args: exactly(1, "the name of an access review in reviews.yaml"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withAdmin(c.Context(), socket, startWait, func(ctx context.Context, client *api.Client) error {
				started, err := api.NewReviews(client).StartCampaign(ctx, args[0])
				if err != nil {
					return err
				}
				return a.printCampaign(started)
			})
		},
	}
	a.asOperator(c, &socket)
	return c
}

// startWait is how long the start of a review may take: it writes every item.
const startWait = 2 * time.Minute

func (a *app) printCampaign(c *api.Campaign) error {
	return a.print(c, func(w io.Writer) {
		fmt.Fprintf(w, "review\t%s\nid\t%s\nstatus\t%s\nstarted\t%s", printable(c.Name), c.ID, c.Status, c.StartedAt.Format(time.RFC3339))
		if c.StartedBy != "" {
			fmt.Fprintf(w, " by %s", printable(c.StartedBy))
		}
		fmt.Fprintf(w, "\ndeadline\t%s\nitems\t%d\n", c.DeadlineAt.Format(time.RFC3339), c.Items)
		for _, status := range []string{"open", "second_look", "kept", "narrowed", "ended", "disabled", "gone"} {
			if n := c.Counts[status]; n > 0 {
				fmt.Fprintf(w, "  %s\t%d\n", strings.ReplaceAll(status, "_", " "), n)
			}
		}
		var reviewers []string
		for reviewer := range c.Waiting {
			reviewers = append(reviewers, reviewer)
		}
		slices.Sort(reviewers)
		for _, reviewer := range reviewers {
			fmt.Fprintf(w, "waiting for %s\t%d\n", printable(reviewer), c.Waiting[reviewer])
		}
	})
}

func (a *app) reviewListCommand() *cobra.Command {
	var socket, cursor string
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the access reviews that you may see",
		Example: `  broker review list --as-person`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withAdmin(c.Context(), socket, adminWait, func(ctx context.Context, client *api.Client) error {
				page, err := api.NewReviews(client).Campaigns(ctx, cursor, limit)
				if err != nil {
					return err
				}
				rows := make([][]string, len(page.Campaigns))
				for i, one := range page.Campaigns {
					waiting := one.Counts["open"] + one.Counts["second_look"]
					rows[i] = []string{printable(one.Name), one.Status, one.DeadlineAt.Format(time.RFC3339), fmt.Sprintf("%d of %d", one.Items-waiting, one.Items), one.ID}
				}
				return a.printPage(page, "access reviews", []string{"NAME", "STATUS", "DEADLINE", "DECIDED", "ID"}, rows, page.Next)
			})
		},
	}
	c.Flags().StringVar(&cursor, "cursor", "", "continue after an earlier page")
	c.Flags().IntVar(&limit, "limit", 0, "the length of a page (default 50, at most 100)")
	a.asOperator(c, &socket)
	return c
}

func (a *app) reviewShowCommand() *cobra.Command {
	var socket string
	var f api.ReviewFilter
	c := &cobra.Command{
		Use:   "show REVIEW [ITEM]",
		Short: "Show an access review, its items, or one item",
		Example: `  broker review show cmp_0658sg2b7puh5u0qv0s9k8g6nk --as-person
  broker review show cmp_0658sg2b7puh5u0qv0s9k8g6nk --mine --as-person
  broker review show cmp_0658sg2b7puh5u0qv0s9k8g6nk 17 --as-person`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withAdmin(c.Context(), socket, adminWait, func(ctx context.Context, client *api.Client) error {
				if len(args) == 2 {
					return a.showItem(ctx, client, args[0], args[1])
				}
				if !f.Mine && f.Status == "" && f.Cursor == "" {
					found, err := api.NewReviews(client).Campaign(ctx, args[0])
					if err != nil {
						return err
					}
					return a.printCampaign(found)
				}
				return a.showItems(ctx, client, args[0], f)
			})
		},
	}
	takesCampaign(c, 0, 1, " and perhaps the number of an item")
	c.Flags().BoolVar(&f.Mine, "mine", false, "list the items that wait for you")
	c.Flags().StringVar(&f.Status, "status", "", "list the items in this state: open, second_look, kept, narrowed, ended, disabled or gone")
	c.Flags().StringVar(&f.Cursor, "cursor", "", "continue after an earlier page of items")
	c.Flags().IntVar(&f.Limit, "limit", 0, "the length of a page (default 50, at most 100)")
	a.asOperator(c, &socket)
	return c
}

func (a *app) showItems(ctx context.Context, client *api.Client, id string, f api.ReviewFilter) error {
	page, err := api.NewReviews(client).ReviewItems(ctx, id, f)
	if err != nil {
		return err
	}
	rows := make([][]string, len(page.Items))
	for i, item := range page.Items {
		rows[i] = []string{strconv.Itoa(item.Item), item.Kind, printable(item.Name), strings.ReplaceAll(item.Status, "_", "-"), printable(item.Reviewer)}
	}
	return a.printPage(page, "items", []string{"ITEM", "KIND", "NAME", "STATUS", "REVIEWER"}, rows, page.Next)
}

// itemNumber reads the number of an item.
func itemNumber(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, usage("%q is not the number of an item: broker review show REVIEW --mine lists them", text)
	}
	return n, nil
}

func (a *app) showItem(ctx context.Context, client *api.Client, id, number string) error {
	n, err := itemNumber(number)
	if err != nil {
		return err
	}
	item, err := api.NewReviews(client).ReviewItem(ctx, id, n)
	if err != nil {
		return err
	}
	return a.print(item, func(w io.Writer) { writeItem(w, item) })
}

func writeItem(w io.Writer, i *api.ReviewItem) {
	fmt.Fprintf(w, "item\t%d\n%s\t%s\nstatus\t%s\nreviewer\t%s\n", i.Item, i.Kind, printable(i.Name), strings.ReplaceAll(i.Status, "_", " "), printable(i.Reviewer))
	list := func(label string, items []string) {
		if len(items) > 0 {
			fmt.Fprintf(w, "%s\t%s\n", label, printable(strings.Join(items, ", ")))
		}
	}
	list("entitlements", i.Covers)
	list("parts", i.Parts)
	if u := i.Use; u != nil {
		last := "never"
		if !u.LastAt.IsZero() {
			last = u.LastAt.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "last used\t%s\ncredentials\t%d\n", last, u.Credentials)
		list("never used", u.UnusedParts)
	}
	if i.PeersAll > 0 {
		fmt.Fprintf(w, "similar ones\t%d\n", i.PeersAll)
	}
	if i.Supplier != "" {
		fmt.Fprintf(w, "supplier\t%s\n", printable(i.Supplier))
	}
	for _, e := range i.Earlier {
		if e.Decision != nil {
			fmt.Fprintf(w, "before\t%s by %s, %s\n", e.Status, printable(e.Decision.By), e.Decision.At.Format(time.DateOnly))
		}
	}
	if d := i.Decision; d != nil {
		fmt.Fprintf(w, "decision\t%s by %s: %s\n", d.Decision, printable(d.By), printable(d.Reason))
	}
	if s := i.Suspension; s != nil {
		fmt.Fprintf(w, "suspended\t%s since %s\n", s.Cause, s.Since.Format(time.RFC3339))
	}
	if i.Why != "" {
		fmt.Fprintf(w, "you\tcan't decide: %s\n", printable(i.Why))
	}
	for line := range strings.Lines(i.Content) {
		fmt.Fprintf(w, "  %s\n", printable(strings.TrimRight(line, "\n")))
	}
}

func (a *app) reviewDecideCommand() *cobra.Command {
	var keep, end bool
	var left []string
	var why string
	c := &cobra.Command{
		Use:   "decide REVIEW ITEM...",
		Short: "Keep, narrow or end items of an access review",
		Long: `decide records your decision on each item, bound to the item as it is now.
Several items can only be kept: that is recorded as one decision, and a random
tenth of the items waits for a second look. A decision that needs a signature is
made in the browser.`,
		Example: `  broker review decide cmp_0658sg2b7puh5u0qv0s9k8g6nk 17 --narrow tickets:read --why "it only reads"
  broker review decide cmp_0658sg2b7puh5u0qv0s9k8g6nk 3 4 5 --keep --why "all of them still run"`,
		RunE: func(c *cobra.Command, args []string) error {
			verdict, err := verdictOf(keep, end, left)
			if err != nil {
				return err
			}
			if why == "" {
				return usage("every decision has a reason: --why \"…\"")
			}
			var numbers []int
			for _, text := range args[1:] {
				n, err := itemNumber(text)
				if err != nil {
					return err
				}
				numbers = append(numbers, n)
			}
			if len(numbers) > 1 && verdict != "keep" {
				return usage("several items can only be kept: narrow and end them one by one")
			}
			return a.withPerson(c.Context(), func(ctx context.Context, client *api.Client) error {
				if len(numbers) > 1 {
					return a.keepItems(ctx, client, args[0], numbers, why)
				}
				item, err := api.NewReviews(client).ReviewItem(ctx, args[0], numbers[0])
				if err != nil {
					return err
				}
				after, err := api.NewReviews(client).DecideItem(ctx, args[0], numbers[0], api.ReviewVote{Decision: verdict, Digest: item.Digest, Left: left, Reason: why})
				if err != nil {
					return err
				}
				return a.print(after, func(w io.Writer) { writeItem(w, after) })
			})
		},
	}
	takesCampaign(c, 1, 200, " and the numbers of items")
	c.Flags().BoolVar(&keep, "keep", false, "keep the permission")
	c.Flags().StringSliceVar(&left, "narrow", nil, "narrow the permission to these parts; repeatable")
	c.Flags().BoolVar(&end, "end", false, "end the permission")
	addWhy(c, &why)
	a.client.add(c)
	return c
}

func verdictOf(keep, end bool, left []string) (string, error) {
	switch {
	case keep && !end && len(left) == 0:
		return "keep", nil
	case end && !keep && len(left) == 0:
		return "end", nil
	case len(left) > 0 && !keep && !end:
		return "narrow", nil
	}
	return "", usage("decide needs one of --keep, --narrow and --end")
}

func (a *app) keepItems(ctx context.Context, client *api.Client, id string, numbers []int, why string) error {
	bulk := api.ReviewBulk{Reason: why}
	for _, n := range numbers {
		item, err := api.NewReviews(client).ReviewItem(ctx, id, n)
		if err != nil {
			return err
		}
		bulk.Items = append(bulk.Items, api.SeenItem{Item: n, Digest: item.Digest})
	}
	result, err := api.NewReviews(client).KeepItems(ctx, id, bulk)
	if err != nil {
		return err
	}
	return a.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "kept %d\n", result.Kept)
		if len(result.Second) > 0 {
			fmt.Fprintf(w, "a second look is needed at: %s\n", strings.Trim(fmt.Sprint(result.Second), "[]"))
		}
	})
}

func (a *app) reviewRestoreCommand() *cobra.Command {
	var why string
	c := &cobra.Command{
		Use:   "restore REVIEW ITEM",
		Short: "Ask to restore what a review suspended, or agree to it",
		Long: `restore takes two people: the first one asks, and another one agrees. Both must
be allowed to review the permission.`,
		Example: `  broker review restore cmp_0658sg2b7puh5u0qv0s9k8g6nk 17 --why "the migration needs it"`,
		RunE: func(c *cobra.Command, args []string) error {
			n, err := itemNumber(args[1])
			if err != nil {
				return err
			}
			return a.withPerson(c.Context(), func(ctx context.Context, client *api.Client) error {
				item, err := api.NewReviews(client).ReviewItem(ctx, args[0], n)
				if err != nil {
					return err
				}
				result, err := api.NewReviews(client).RestoreItem(ctx, args[0], n, api.Restoration{Digest: item.Digest, Reason: why})
				if err != nil {
					return err
				}
				return a.print(result, func(w io.Writer) {
					if result.Restored {
						fmt.Fprintln(w, "restored")
						return
					}
					fmt.Fprintln(w, "recorded: another person must agree")
				})
			})
		},
	}
	takesCampaign(c, 1, 1, " and the number of an item")
	addWhy(c, &why)
	a.client.add(c)
	return c
}

func (a *app) reviewPatchCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "patch REVIEW",
		Short: "Propose the change for git that a review asks for",
		Long: `patch prints a unified diff of the policy folder that removes or narrows what
the review suspended, so that git and the broker agree. Change the scenarios
that expect it, too. What the diff can't change is listed on standard error.`,
		Example: `  broker review patch cmp_0658sg2b7puh5u0qv0s9k8g6nk --as-person | git apply --directory policies`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withAdmin(c.Context(), socket, adminWait, func(ctx context.Context, client *api.Client) error {
				patch, err := api.NewReviews(client).ReviewPatch(ctx, args[0])
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.print(patch, nil)
				}
				for _, note := range patch.Notes {
					fmt.Fprintln(a.err, printable(note))
				}
				_, err = io.WriteString(a.out, patch.Patch)
				return err
			})
		},
	}
	takesCampaign(c, 0, 0, "")
	a.asOperator(c, &socket)
	return c
}
