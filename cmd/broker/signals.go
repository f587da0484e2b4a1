package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

func (a *app) signalsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "signals [TRANSMITTER]",
		Short: "List the transmitters of security events, or the events that wait for a person",
		Long: `signals lists the transmitters of shared security signals. If one of them would
end too much access within a minute, its further events wait: "signals
TRANSMITTER" shows them, and release or discard decides about exactly these. It
needs the action block, or the admin socket.`,
		Example: `  broker signals --admin-socket /run/broker/admin.sock
  broker signals okta --as-person
  broker signals discard okta --why "the provider confirmed a mistake" --as-person`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("signals takes at most one TRANSMITTER; see %s --help", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				if len(args) == 0 {
					list, err := api.NewSignals(client).Transmitters(ctx)
					if err != nil {
						return err
					}
					return a.printTable(list, func(w io.Writer) { writeTransmitters(w, list.Transmitters) })
				}
				held, err := api.NewSignals(client).Held(ctx, args[0])
				if err != nil {
					return err
				}
				return a.printTable(held, func(w io.Writer) { writeHeldEvents(w, held) })
			})
		},
	}
	c.AddCommand(a.decideEventsCommand(api.ReleaseEvents, "Let the waiting events of a transmitter take effect"),
		a.decideEventsCommand(api.DiscardEvents, "Discard the waiting events of a transmitter"), a.clearStatementCommand())
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

// decideEventsCommand shows the waiting events and decides about exactly these.
func (a *app) decideEventsCommand(decision, short string) *cobra.Command {
	d, yes := api.HeldDecision{Decision: decision}, false
	c := &cobra.Command{
		Use:   decision + " TRANSMITTER",
		Short: short,
		Args:  exactly(1, "one TRANSMITTER"),
		RunE: func(c *cobra.Command, args []string) error {
			if strings.TrimSpace(d.Reason) == "" {
				return errNoReason
			}
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				held, err := api.NewSignals(client).Held(ctx, args[0])
				if err != nil {
					return err
				}
				if held.Events == 0 {
					return fmt.Errorf("no events of %s wait for a decision", printable(args[0]))
				}
				if !yes {
					if err := a.confirmEvents(ctx, held, decision); err != nil {
						return err
					}
				}
				d.Through, d.Digest = held.Through, held.Digest
				done, err := api.NewSignals(client).Decide(ctx, args[0], d)
				if err != nil {
					return err
				}
				return a.printTable(done, func(w io.Writer) {
					fmt.Fprintf(w, "%s %s about %s\n", map[string]string{api.ReleaseEvents: "released", api.DiscardEvents: "discarded"}[decision],
						amount(done.Events, "event", "events"), amount(done.People, "person", "people"))
				})
			})
		},
	}
	addWhy(c, &d.Reason)
	c.Flags().BoolVar(&yes, "yes", false, "skip the confirmation")
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

// confirmEvents shows the waiting events and returns an error unless a person types yes.
func (a *app) confirmEvents(ctx context.Context, held *api.HeldEvents, decision string) error {
	shown := newTable(a.err)
	writeHeldEvents(shown, held)
	_ = shown.Flush() // to a terminal
	fmt.Fprintf(a.err, "\nType yes to %s %s: ", decision, amount(held.Events, "event", "events"))
	line, err := a.answer(ctx, bufio.NewReader(io.LimitReader(a.in, 4096)))
	switch {
	case line == "" && err == io.EOF && !interactive(a.in):
		return usage("standard input is not a terminal: look at the events with broker signals %s, then use --yes", printable(held.Transmitter.Name))
	case errors.Is(err, errNotConfirmed):
		return err
	case line != "yes":
		return fmt.Errorf("%w: type yes, or use --yes", errNotConfirmed)
	}
	return nil
}

func (a *app) clearStatementCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "clear TRANSMITTER PERSON",
		Short: "Forget what a transmitter stated about a person",
		Long: `clear is the way back from an event that was wrong, if the transmitter does not
send the opposite one. The person may not do it.`,
		Args: exactly(2, "TRANSMITTER and PERSON"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				if err := api.NewSignals(client).Clear(ctx, args[0], args[1]); err != nil {
					return err
				}
				fmt.Fprintf(a.out, "%s no longer states anything about %s\n", printable(args[0]), printable(args[1]))
				return nil
			})
		},
	}
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

func writeTransmitters(w io.Writer, list []api.Transmitter) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no transmitter is configured")
		return
	}
	fmt.Fprint(w, "TRANSMITTER\tPROVIDER\tSTREAM\tLAST HEARD OF\tWAITING EVENTS\n")
	for _, t := range list {
		waiting := "none"
		if t.Held > 0 {
			waiting = fmt.Sprintf("%d since %s", t.Held, dayOf(t.HeldSince))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", printable(t.Name), printable(t.Provider), t.Stream, dayOf(t.HeardAt), waiting)
	}
}

func writeHeldEvents(w io.Writer, held *api.HeldEvents) {
	if held.Events == 0 {
		fmt.Fprintf(w, "no events of %s wait for a decision\n", printable(held.Transmitter.Name))
		return
	}
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(held.ByKind)) {
		kinds = append(kinds, fmt.Sprintf("%d %s", held.ByKind[kind], strings.ReplaceAll(kind, "_", " ")))
	}
	fmt.Fprintf(w, "%s of %s wait: %s\n", amount(held.Events, "event", "events"), printable(held.Transmitter.Name), strings.Join(kinds, ", "))
	fmt.Fprintf(w, "they name %s with %s\n", amount(held.People, "person", "people"), amount(int(held.Leases), "live lease", "live leases"))
	if held.Own {
		fmt.Fprintln(w, "one of them is about you: another person must decide")
	}
	fmt.Fprint(w, "\nEVENT\tPERSON\tHAPPENED\n")
	for _, e := range held.First {
		who := e.Person
		if who == "" {
			who = "session " + e.Session
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", strings.ReplaceAll(e.Kind, "_", " "), printable(who), dayOf(e.HappenedAt))
	}
	if more := held.Events - len(held.First); more > 0 {
		fmt.Fprintf(w, "and %d more\n", more)
	}
}

// amount returns a number with its noun.
func amount(n int, one, many string) string { return fmt.Sprintf("%d %s", n, plural(n, one, many)) }
