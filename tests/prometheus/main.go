// Command prometheus evaluates expressions over scrapes with Prometheus' own engine, and checks
// rule files with its own loader.
//
// Standard input is one JSON object: {"scrapes": [{"at": seconds, "labels": {name: value}, "text":
// exposition}], "step": seconds, "expressions": [text], "rules": [text of a rule file]}, the scrapes
// by time; labels are those of the target. Standard output is one JSON object: {"results": [{"error": text} or {"series": [{"labels": {name: value},
// "points": [[seconds, value]]}]}], "rules": [[error]]}, in the order of what was asked.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb"
)

type scrape struct {
	At     int64             `json:"at"`
	Labels map[string]string `json:"labels"`
	Text   string            `json:"text"`
}

type request struct {
	Scrapes     []scrape `json:"scrapes"`
	Step        int64    `json:"step"`
	Expressions []string `json:"expressions"`
	Rules       []string `json:"rules"`
}

type series struct {
	Labels map[string]string `json:"labels"`
	Points [][2]float64      `json:"points"`
}

type result struct {
	Error  string   `json:"error,omitempty"`
	Series []series `json:"series"`
}

type answer struct {
	Results []result   `json:"results"`
	Rules   [][]string `json:"rules"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "prometheus:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	var asked request
	if err := json.NewDecoder(in).Decode(&asked); err != nil {
		return fmt.Errorf("reading the question: %w", err)
	}
	if len(asked.Scrapes) == 0 {
		return errors.New("no scrapes")
	}
	dir, err := os.MkdirTemp("", "shunt-prometheus-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	logs := slog.New(slog.DiscardHandler)
	db, err := tsdb.Open(dir, logs, nil, tsdb.DefaultOptions(), nil)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, scrape := range asked.Scrapes {
		if err := add(db, scrape); err != nil {
			return fmt.Errorf("the scrape at %d: %w", scrape.At, err)
		}
	}
	engine := promql.NewEngine(promql.EngineOpts{
		Logger:     logs,
		MaxSamples: 10_000_000,
		Timeout:    time.Minute,
		Parser:     parser.NewParser(parser.Options{}),
	})
	var found answer
	for _, expression := range asked.Expressions {
		found.Results = append(found.Results, evaluate(engine, db, asked, expression))
	}
	for _, rules := range asked.Rules {
		found.Rules = append(found.Rules, check(rules))
	}
	return json.NewEncoder(out).Encode(found)
}

// add enters the samples of a scrape, with the labels that a target has.
func add(db *tsdb.DB, scrape scrape) error {
	symbols := labels.NewSymbolTable()
	lines, err := textparse.New([]byte(scrape.Text), "text/plain", symbols, textparse.ParserOptions{})
	if err != nil {
		return err
	}
	appender := db.Appender(context.Background())
	for {
		entry, err := lines.Next()
		if errors.Is(err, io.EOF) {
			return appender.Commit()
		}
		if err != nil {
			return err
		}
		if entry != textparse.EntrySeries {
			continue
		}
		var own labels.Labels
		lines.Labels(&own)
		builder := labels.NewBuilder(own)
		for name, value := range scrape.Labels {
			builder.Set(name, value)
		}
		_, _, value := lines.Series()
		if _, err := appender.Append(0, builder.Labels(), scrape.At*1000, value); err != nil {
			return err
		}
	}
}

func evaluate(engine *promql.Engine, db *tsdb.DB, asked request, expression string) result {
	from := time.Unix(asked.Scrapes[0].At, 0)
	to := time.Unix(asked.Scrapes[len(asked.Scrapes)-1].At, 0)
	step := time.Duration(asked.Step) * time.Second
	ctx := context.Background()
	query, err := engine.NewRangeQuery(ctx, db, nil, expression, from, to, step)
	if err != nil {
		return result{Error: err.Error()}
	}
	defer query.Close()
	matrix, err := query.Exec(ctx).Matrix()
	if err != nil {
		return result{Error: err.Error()}
	}
	found := result{Series: []series{}}
	for _, one := range matrix {
		points := [][2]float64{}
		for _, point := range one.Floats {
			// JSON knows no other numbers.
			if !math.IsNaN(point.F) && !math.IsInf(point.F, 0) {
				points = append(points, [2]float64{float64(point.T) / 1000, point.F})
			}
		}
		found.Series = append(found.Series, series{one.Metric.Map(), points})
	}
	return found
}

// check loads a rule file as Prometheus does.
func check(text string) []string {
	found := []string{}
	language := parser.NewParser(parser.Options{})
	logs := slog.New(slog.DiscardHandler)
	_, problems := rulefmt.Parse([]byte(text), false, model.UTF8Validation, language, logs)
	for _, problem := range problems {
		found = append(found, problem.Error())
	}
	return found
}
