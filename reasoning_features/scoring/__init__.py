"""ReasonScore of every feature, from one pass, and what the choice by it depends on."""
